"use strict";
// The page to play with: it speaks to the server by the same endpoints as any other client.

const $ = (id) => document.getElementById(id);
const PREVIEWS = 8;
const WORDS = {text: "text", image: "image", audio: "speech", scene3d: "scene"};
const PLURALS = {text: "text", image: "images", audio: "speech", scene3d: "scenes", motion: "motions"};
const PLAIN = ["text", "image", "audio"];  // what this page shows by itself; items of other kinds come with their HTML
let models = [], parts = [], running = null, key = sessionStorage.getItem("plait-key") || "";

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.filter((child) => child !== null));
  return node;
}

// -- the server ---------------------------------------------------------------------------------------------------

async function call(path, body, signal) {
  const headers = {"Content-Type": "application/json", ...(key ? {Authorization: `Bearer ${key}`} : {})};
  const options = body ? {method: "POST", headers, body: JSON.stringify(body), signal} : {headers, signal};
  const answer = await fetch(path, options);
  if (answer.status === 401 && await askKey()) return call(path, body, signal);
  if (!answer.ok) {
    const said = await answer.json().catch(() => null);
    throw new Error(said?.error?.message || `the server answered ${answer.status}`);
  }
  return answer;
}

function askKey() {
  const dialog = $("key");
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => {
    key = dialog.querySelector("input").value;
    sessionStorage.setItem("plait-key", key);
    resolve(Boolean(key));
  }, {once: true}));
}

async function* eventsOf(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: {")) yield JSON.parse(line.slice(6));
  }
}

async function connect() {
  for (;;) {
    const health = await fetch("health").catch(() => null);
    if (health?.ok) break;
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
  models = (await (await call("v1/models")).json()).data;
  const makes = models[0].output_modalities, reads = models[0].input_modalities;
  const list = (words) => words.length > 1 ? `${words.slice(0, -1).join(", ")} and ${words.at(-1)}` : words[0];
  $("about").textContent = `${list(models.map((m) => m.id))} ${models.length > 1 ? "read" : "reads"} ` +
    `${list(reads.map((w) => PLURALS[w] || w))}, and ${models.length > 1 ? "make" : "makes"} ${list(makes.map((w) => PLURALS[w] || w))}.`;
  const others = makes.filter((w) => !PLAIN.includes(w));
  const choices = [...["image", "audio", ...others, "text"].filter((w) => makes.includes(w)), ...(makes.length > 1 ? ["you choose"] : [])];
  choices.forEach((word, i) => $("make").append(element("label", {},
    element("input", {type: "radio", name: "make", value: word, checked: i === 0}), WORDS[word] || word)));
  $("add").hidden = !reads.some((w) => w !== "text");
  $("record").hidden = !reads.includes("audio") || !navigator.mediaDevices || !window.MediaRecorder;
  document.querySelector("[data-for=latents]").hidden = !models.some((m) => m.denoises);
  $("go").disabled = false;
  showGallery();
}

// -- the prompt ---------------------------------------------------------------------------------------------------

function addFile(file) {
  const type = file.type.split("/")[0], reads = models[0]?.input_modalities || [];
  const kind = ["image", "audio"].includes(type) && reads.includes(type) ? type : "file";
  if (kind === "file" && !reads.some((w) => !PLAIN.includes(w))) {
    return say(`${file.name || "what was dropped"}: this model reads ${reads.join(", ")} alone`);
  }
  const reader = new FileReader();
  reader.onload = () => { keepText(); parts.push({kind, url: reader.result, name: file.name}); showParts(); };
  reader.readAsDataURL(file);
}

// What was typed before a dropped image stands before it.
function keepText() {
  const text = $("text").value.trim();
  if (text) parts.push({kind: "text", text});
  $("text").value = "";
}

function showParts() {
  $("parts").replaceChildren(...parts.map((part, i) => element("span", {className: "part"}, media(part), element("button", {
    type: "button", textContent: "×", title: "Take it out", ariaLabel: "Take it out",
    onclick: () => { parts.splice(i, 1); showParts(); },
  }))));
}

function media(part) {
  if (part.kind === "image") return element("img", {src: part.url, alt: part.name || "image"});
  if (part.kind === "audio") return element("audio", {src: part.url, controls: true});
  if (part.html) return element("div", {className: "own", innerHTML: part.html});
  return element("span", {className: "said", textContent: part.text ?? part.name});
}

function itemOf(part) {
  if (part.kind === "text") return {type: "text", text: part.text};
  if (part.kind === "image") return {type: "image_url", image_url: {url: part.url}};
  if (part.kind !== "audio") return {type: "file", file: {filename: part.name, file_data: part.url}};
  const [head, data] = part.url.split(",");
  const format = {mpeg: "mp3", "x-wav": "wav", wave: "wav"}[head.match(/audio\/([\w-]+)/)[1]] || head.match(/audio\/([\w-]+)/)[1];
  return {type: "input_audio", input_audio: {data, format: format.replace("x-", "")}};
}

function requestOf() {
  const given = [...parts];
  if ($("text").value.trim()) given.push({kind: "text", text: $("text").value.trim()});
  const chosen = document.querySelector("[name=make]:checked").value;
  const fields = {};
  for (const input of document.querySelectorAll("#settings input")) {
    if (input.value !== "") fields[input.name] = Number(input.value);
  }
  if (fields.n === 1) delete fields.n;
  const plain = given.length === 1 && given[0].kind === "text";
  const body = {
    messages: [{role: "user", content: plain ? given[0].text : given.map(itemOf)}],
    modalities: chosen === "you choose" ? models[0].output_modalities : [chosen], ...fields,
  };
  return {given, chosen, body};
}

// -- answers ------------------------------------------------------------------------------------------------------

function say(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

async function run(asked) {
  say("");
  if (!asked.given.length) return say("Say what to make first.");
  running = new AbortController();
  $("go").textContent = "Stop";
  if (asked.body.seed === undefined) asked.body = {...asked.body, seed: Math.floor(Math.random() * 2 ** 31)};
  const sides = models.map((model) => element("div", {className: "side"},
    models.length > 1 ? element("h3", {textContent: model.id}) : null));
  const foot = element("div", {className: "foot"});
  const result = element("article", {className: "result"}, element("div", {className: "asked"},
    ...asked.given.map(media), element("span", {className: "soft", textContent: `→ ${WORDS[asked.chosen] || asked.chosen}`})),
    element("div", {className: "sides"}, ...sides), foot);
  $("results").prepend(result);
  const began = performance.now();
  const done = await Promise.allSettled(models.map((model, i) => stream({...asked.body, model: model.id}, sides[i], running.signal)));
  const failure = done.find((d) => d.status === "rejected" && d.reason.name !== "AbortError");
  if (failure) say(failure.reason.message);
  if (done.every((d) => d.status === "rejected") && failure) result.remove();
  showFoot(foot, asked, (performance.now() - began) / 1e3, done, sides);
  running = null;
  $("go").textContent = "Generate";
}

async function stream(body, side, signal) {
  const waiting = element("p", {className: "waiting", textContent: "…"}), list = element("div", {className: "answers"});
  side.append(waiting);
  const answers = [];
  try {
    const answer = await call("v1/chat/completions", {...body, stream: true, previews: PREVIEWS, html: true, stream_options: {include_usage: true}}, signal);
    waiting.replaceWith(list);
    let usage = null;
    for await (const event of eventsOf(answer)) {
      if (event.error) throw new Error(event.error.message);
      if (event.usage) usage = event.usage;
      for (const choice of event.choices || []) {
        const shown = answers[choice.index] ||= list.appendChild(element("div", {className: "answer writing"}));
        if (choice.delta.content) write(shown, choice.delta.content);
        if (choice.delta.segment) show(shown, choice.delta.segment);
        if (choice.finish_reason) finish(shown, choice.finish_reason);
      }
    }
    return usage;
  } finally {
    waiting.remove();
    answers.forEach((shown) => shown.classList.remove("writing"));
  }
}

function write(shown, text) {
  shown.classList.add("wide");
  const last = shown.lastElementChild;
  (last?.tagName === "P" ? last : shown.appendChild(element("p"))).textContent += text;
}

function show(shown, segment) {
  if (segment.kind === "text") return write(shown, segment.data);
  let figure = shown.querySelector("figure.forming");
  if (!figure) {
    const inner = segment.kind === "image" ? element("img", {alt: "what was made"}) :
      segment.kind === "audio" ? element("audio", {controls: true}) : element("div", {className: "own"});
    figure = shown.appendChild(element("figure", {className: "forming"}, inner, element("figcaption")));
  }
  figure.file = `data:${PLAIN.includes(segment.kind) ? segment.kind : "application"}/${segment.format};base64,${segment.data}`;
  figure.suffix = segment.format;
  if (segment.html) figure.firstElementChild.innerHTML = segment.html;
  else figure.firstElementChild.src = figure.file;
  figure.lastElementChild.textContent = segment.preview ? `noise ${Math.round(100 * segment.level)}%` : "";
  if (!segment.preview) figure.classList.remove("forming");
}

function finish(shown, reason) {
  shown.classList.remove("writing");
  if (reason === "length") shown.append(element("span", {className: "waiting", textContent: "(cut at the longest length)"}));
  if (!shown.childElementCount) shown.append(element("p", {className: "waiting", textContent: "(nothing)"}));
}

function showFoot(foot, asked, seconds, done, sides) {
  const tokens = done.reduce((sum, d) => sum + (d.value?.completion_tokens || 0), 0);
  const button = (textContent, onclick) => element("button", {type: "button", textContent, onclick});
  const copied = (node, text) => navigator.clipboard.writeText(text).then(() => {
    const before = node.textContent;
    node.textContent = "Copied";
    setTimeout(() => { node.textContent = before; }, 1200);
  });
  const again = (seed) => { if (!running) run({...asked, body: {...asked.body, seed}}); };
  foot.append(
    element("span", {textContent: `seed ${asked.body.seed} · ${seconds.toFixed(1)} s${tokens ? ` · ${tokens} tokens` : " · stopped"}`}),
    button("Again", () => again(asked.body.seed)), button("Another seed", () => again(undefined)),
    button("Copy as curl", (event) => copied(event.target, curlOf(asked.body))),
    button("Copy as Python", (event) => copied(event.target, pythonOf(asked.body))),
  );
  const files = sides.flatMap((side) => [...side.querySelectorAll("figure:not(.forming)")]).filter((figure) => figure.file);
  if (files.length) foot.append(button(files.length > 1 ? `Download ${files.length} files` : "Download", () => files.forEach((figure, i) => {
    element("a", {href: figure.file, download: `plait-${asked.body.seed}-${i}.${figure.suffix}`}).click();
  })));
}

function curlOf(body) {
  const quoted = JSON.stringify({...body, model: models[0].id}).replaceAll("'", "'\\''");
  return `curl ${location.origin}/v1/chat/completions -H 'Content-Type: application/json' \\\n` +
    (key ? "  -H \"Authorization: Bearer $PLAIT_KEY\" \\\n" : "") + `  -d '${quoted}'`;
}

function pythonOf(body) {
  const own = ["guidance_scale", "num_inference_steps", "top_k"];
  const known = Object.entries({model: models[0].id, ...body}).filter(([name]) => !own.includes(name));
  const others = Object.fromEntries(Object.entries(body).filter(([name]) => own.includes(name)));
  const lines = known.map(([name, value]) => `    ${name}=${literal(value)},`);
  if (Object.keys(others).length) lines.push(`    extra_body=${literal(others)},`);
  return `import os\n\nimport openai\n\nclient = openai.OpenAI(base_url="${location.origin}/v1", api_key=os.environ.get("PLAIT_KEY", "none"))\n` +
    `answer = client.chat.completions.create(\n${lines.join("\n")}\n)\nprint(answer.choices[0].message.content)\n`;
}

// JSON of strings, numbers, lists and mappings is Python as well
const literal = (value) => JSON.stringify(value);

// -- the gallery --------------------------------------------------------------------------------------------------

async function showGallery() {
  const answer = await call("samples").catch(() => null);
  const {samples, script} = answer ? await answer.json() : {samples: [], script: null};
  if (script) document.head.append(element("script", {src: script}));
  $("gallery").hidden = !samples.length;
  const example = samples.flatMap((sample) => sample.prompt).find((part) => part.text);
  if (example) $("text").placeholder = `Say what to make, such as “${example.text}”`;
  $("samples").replaceChildren(...samples.map((sample) => {
    const [prompt, made] = [sample.prompt, sample.output];
    const card = (part, name) => part.url ? media({name: "sample", ...part}) : element("span", {className: name, textContent: part.text});
    const tried = element("button", {type: "button", textContent: "Try it", onclick: () => {
      parts = prompt.filter((part) => part.url);
      $("text").value = prompt.filter((part) => !part.url).map((part) => part.text).join("\n");
      const kind = document.querySelector(`[name=make][value="${made[0]?.kind}"]`);
      if (kind) kind.checked = true;
      Promise.all(parts.map(async (part) => {
        const blob = await (await fetch(part.url)).blob();
        part.url = await new Promise((resolve) => { const r = new FileReader(); r.onload = () => resolve(r.result); r.readAsDataURL(blob); });
      })).then(showParts);
      scrollTo({top: 0, behavior: "smooth"});
    }});
    return element("article", {className: "sample"}, ...prompt.map((part) => card(part, "given")),
      element("span", {className: "arrow", textContent: "↓"}), ...made.map((part) => card(part, "made")), tried);
  }));
}

// -- what people do -----------------------------------------------------------------------------------------------

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) running.abort();
  else run(requestOf());
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); if (!$("go").disabled) $("composer").requestSubmit(); }
});
$("add").onclick = () => $("file").click();
$("file").onchange = () => { [...$("file").files].forEach(addFile); $("file").value = ""; };
document.addEventListener("paste", (event) => [...event.clipboardData.files].forEach(addFile));
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("composer").classList.toggle("over", name === "dragover");
    if (name === "drop") [...event.dataTransfer.files].forEach(addFile);
  });
}
let stopRecording = null;
$("record").onclick = async () => {
  try {
    if (stopRecording) { const file = await stopRecording(); stopRecording = null; addFile(file); }
    else stopRecording = await startRecording();
  } catch (error) { stopRecording = null; say(`recording: ${error.message}`); }
  $("record").classList.toggle("on", Boolean(stopRecording));
  $("record").textContent = stopRecording ? "■ Stop" : "● Record";
};
connect().catch((error) => say(error.message));
