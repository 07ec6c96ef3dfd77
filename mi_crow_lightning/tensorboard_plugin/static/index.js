// The module that TensorBoard's frame imports.

import { App } from "./app.js";
import { element } from "./dom.js";
import { followDarkMode, onReload } from "./host.js";

/** Build the page. */
export async function render() {
  document.title = "Activations";
  document.documentElement.lang = "en";
  const styles = ["style.css", "uplot/uPlot.min.css"].map((file) =>
    element("link", { rel: "stylesheet", href: new URL(file, import.meta.url).href }),
  );
  const styled = styles.map((link) => new Promise((resolve) => link.addEventListener("load", resolve)));
  document.head.append(...styles);
  await Promise.all(styled);
  const app = new App(document.body);
  await app.reload();
  followDarkMode(() => app.repaint());
  let stale = false; // TensorBoard reports the log of hidden tabs too: that is read when the tab is shown
  const catchUp = () => {
    if (!stale || !document.body.clientWidth) return;
    stale = false;
    app.reload();
  };
  onReload(() => {
    stale = true;
    catchUp();
  });
  window.addEventListener("resize", catchUp);
}
