// Light and dark, as the system or the browser is set.

/** Follow the reader's choice, and call `changed` when it changes. */
export function followScheme(changed) {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const follow = () => {
    document.documentElement.classList.toggle("dark", dark.matches);
    changed();
  };
  dark.addEventListener("change", follow);
  follow();
}
