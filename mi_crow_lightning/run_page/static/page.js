// The module of a page that stands alone: what a run did, in one file.

import { answerFrom } from "./api.js";
import { App } from "./app.js";
import { openArchive } from "./archive.js";
import { element } from "./dom.js";
import { followScheme } from "./scheme.js";
import { keepOwnAddress, readAddress } from "./state.js";

/** Show the page. */
async function show() {
  const place = document.getElementById("app");
  const { about, answer } = await openArchive(document.getElementById("answers").textContent);
  document.title = about.title;
  answerFrom(answer);
  keepOwnAddress();
  let app = null;
  followScheme(() => app?.repaint());
  app = new App(place);
  app.title.textContent = about.title;
  app.title.after(...about.lines.map((line) => element("p", { className: "about" }, line)));
  await app.reload();
  window.addEventListener("hashchange", () => app.change(readAddress())); // a link was pasted over this one
}

show().catch((error) => {
  const needed = "It needs a browser of 2023 or later: Chrome 103, Firefox 113, Safari 16.4.";
  document.getElementById("app").textContent = `This page cannot be shown: ${error.message}. ${needed}`;
});
