// TensorBoard around the page: its reload button, and its dark mode.

import { hostWindow } from "./state.js";

/** Call `reload` whenever TensorBoard has read the log again. */
export function onReload(reload) {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = (event) => {
    const { type, id, isReply } = JSON.parse(event.data);
    if (isReply) return;
    port1.postMessage(JSON.stringify({ type, id, payload: null, error: null, isReply: true }));
    if (type === "experimental.DataReloaded") reload();
  };
  window.parent.postMessage("experimental.bootstrap", window.location.origin, [port2]);
}

/** Follow TensorBoard's dark mode, and call `changed` when it changes. */
export function followDarkMode(changed) {
  const body = hostWindow()?.document.body;
  if (!body) return;
  const follow = () => {
    document.documentElement.classList.toggle("dark", body.classList.contains("dark-mode"));
    changed();
  };
  new MutationObserver(follow).observe(body, { attributes: true, attributeFilter: ["class"] });
  follow();
}
