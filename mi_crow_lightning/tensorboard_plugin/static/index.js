// The module that TensorBoard's frame imports.

import { App } from "./app.js";
import { element } from "./dom.js";
import { followDarkMode, onReload } from "./host.js";

/** Build the page. */
export async function render() {
  document.title = "Activations";
  document.documentElement.lang = "en";
  const styles = element("link", { rel: "stylesheet", href: new URL("style.css", import.meta.url).href });
  const styled = new Promise((resolve) => styles.addEventListener("load", resolve));
  document.head.append(styles);
  await styled;
  const app = new App(document.body);
  onReload(() => app.reload());
  await app.reload();
  followDarkMode(() => app.draw());
}
