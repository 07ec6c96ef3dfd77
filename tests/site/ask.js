// Ask the search of a built site, with the worker that a browser would run: node ask.js SITE < questions.json
// It writes the pages found for each question, the best first, as JSON.
const fs = require("fs");
const path = require("path");
const vm = require("vm");

const site = process.argv[2];
const workers = path.join(site, "assets", "javascripts", "workers");
const script = fs.readdirSync(workers).find((name) => /^search\..*\.js$/.test(name));
const index = JSON.parse(fs.readFileSync(path.join(site, "search", "search_index.json"), "utf8"));

// What a worker finds around it in a browser, as far as this one uses it.
let listener;
const answers = [];
const around = {
  console,
  Intl,
  location: { href: "http://localhost/" },
  addEventListener: (kind, called) => { if (kind === "message") listener = called; },
  postMessage: (message) => answers.push(message),
};
around.self = around;
vm.runInNewContext(fs.readFileSync(path.join(workers, script), "utf8"), around);

// The kinds of messages: 0 set up, 1 ready, 2 query, 3 result.
async function ask(type, data, expected) {
  answers.length = 0;
  await listener({ data: { type, data } });
  if (answers.length !== 1 || answers[0].type !== expected) {
    throw new Error(`the worker answered ${JSON.stringify(answers)} to a message of type ${type}`);
  }
  return answers[0].data;
}

async function main() {
  await ask(0, { ...index, options: { suggest: false } }, 1);
  const found = {};
  for (const question of JSON.parse(fs.readFileSync(0, "utf8"))) {
    const { items } = await ask(2, question, 3);
    found[question] = items.map((sections) => sections[0].location.split("#")[0]);
  }
  console.log(JSON.stringify(found));
}

main().catch((error) => { console.error(error); process.exit(1); });
