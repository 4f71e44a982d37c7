// The playground: sends one chat request as any client would, and shows what comes back.

const $ = (id) => document.getElementById(id);
const state = { steps: [], controller: null, timer: null, request: null, draft: null };
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;

const duration = (seconds) =>
  seconds < 0.9995 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(2)} s`;
// The slider runs from 20 ms to 30 s, each of its hundredths the same factor.
const budgetMs = () => Math.round(20 * 1500 ** (Number($("budget").value) / 100));

function headers() {
  const found = { "content-type": "application/json" };
  if ($("key").value) found.authorization = `Bearer ${$("key").value}`;
  return found;
}

function requestBody() {
  const hybrid = { stream_drafts: true, stream_patches: true, explain: true, budget: `${budgetMs()}ms` };
  if ($("task").value) hybrid.task = $("task").value;
  if ($("refine").value) hybrid.refine = $("refine").value;
  if (Number($("steps").value)) hybrid.max_denoising_steps = Number($("steps").value);
  return {
    model: $("policy").value || "hybrid",
    messages: [{ role: "user", content: $("prompt").value }],
    stream: true,
    hybrid,
  };
}

function showSliders() {
  $("budget-shown").value = duration(budgetMs() / 1000);
  const steps = Number($("steps").value);
  $("steps-shown").value = steps ? `at most ${steps}` : "let the policy decide";
}

async function listPolicies() {
  const response = await fetch("v1/models", { headers: headers() });
  if (!response.ok) return;
  const models = (await response.json()).data.filter((model) => model.id !== "hybrid");
  $("policy").replaceChildren(...models.map((model) => new Option(model.id, model.id)));
  const tasks = [...new Set(models.flatMap((model) => model.hybrid.tasks))];
  $("task").replaceChildren(new Option("recognise it", ""), ...tasks.map((task) => new Option(task, task)));
}

function clear() {
  clearInterval(state.timer);
  Object.assign(state, { steps: [], draft: null });
  for (const id of ["canvas", "answer", "edited", "decision"]) $(id).replaceChildren();
  for (const id of ["error", "edits", "time", "plans"]) $(id).hidden = true;
  $("scrubber").disabled = $("replay").disabled = true;
  $("step-shown").value = "0 of 0";
}

function fail(message) {
  $("error").textContent = message;
  $("error").hidden = false;
  $("status").textContent = "";
}

function showStep(number) {
  const step = state.steps[number - 1];
  if (!step) return;
  const before = state.steps[number - 2];
  const pieces = step.pieces.map((piece, place) => {
    const span = document.createElement("span");
    const stayed = before && before.block === step.block && before.pieces[place] === piece;
    span.className = !step.accepted[place] ? "noise" : stayed ? "settled" : "accepted";
    span.textContent = piece;
    return span;
  });
  $("canvas").replaceChildren(...pieces);
  $("step-shown").value = `${number} of ${state.steps.length}`;
  $("scrubber").value = number;
}

function addSteps(frame) {
  state.steps.push(...(frame.earlier ?? []), frame);
  $("scrubber").max = state.steps.length;
  $("scrubber").disabled = $("replay").disabled = false;
  showStep(state.steps.length);
}

function replay() {
  clearInterval(state.timer);
  let number = 1;
  showStep(number);
  if (still) return showStep(state.steps.length);
  state.timer = setInterval(() => {
    number += 1;
    if (number > state.steps.length) clearInterval(state.timer);
    else showStep(number);
  }, 150);
}

function showEdits(draft, edits) {
  if (draft === null || !edits.length) return;
  const parts = [];
  let end = 0;
  const characters = [...draft]; // Python counts characters, JavaScript UTF-16 units
  for (const edit of edits) {
    parts.push(characters.slice(end, edit.start).join(""));
    for (const [tag, text] of [["del", edit.old], ["ins", edit.new]]) {
      if (!text) continue;
      const element = document.createElement(tag);
      element.textContent = text;
      if (edit.why) element.title = edit.why;
      parts.push(element);
    }
    end = edit.end;
  }
  parts.push(characters.slice(end).join(""));
  $("edited").replaceChildren(...parts);
  $("edits").hidden = false;
}

function showResult(result) {
  const facts = {
    plan: `${result.plan.label} (${result.plan.rule})`,
    policy: `${result.policy}, ${result.policy_sha}`,
    steps: result.steps,
    "refiner passes": result.refiner_passes,
    verdict: result.verdict ? `${result.verdict.accepted ? "accepted" : "not accepted"}: ${result.verdict.reason}` : "none",
    "ended by": result.finish_reason,
    predicted: duration(result.predicted_ms / 1000),
    took: duration(result.actual_ms / 1000),
    seed: result.seed,
    "decision id": result.decision_id,
  };
  if (result.notes.length) facts.notes = result.notes.join("; ");
  const rows = Object.entries(facts).flatMap(([name, value]) => {
    const term = document.createElement("dt");
    const detail = document.createElement("dd");
    term.textContent = name;
    detail.textContent = value;
    return [term, detail];
  });
  $("decision").replaceChildren(...rows);
  showPlans(result.plan);
  if (result.budget_ms) {
    const share = (100 * result.actual_ms) / result.budget_ms;
    $("meter").value = Math.min(100, share);
    $("meter-shown").value = `${duration(result.actual_ms / 1000)} of ${duration(result.budget_ms / 1000)} (${share.toFixed(0)} %)`;
    $("time").className = result.within_budget ? "" : "late";
    $("time").hidden = false;
  }
}

function showPlans(plan) {
  const all = [{ candidate: plan.label, predicted: plan.predicted, why: "chosen" }, ...(plan.rejected ?? [])];
  const rows = all.map(({ candidate, predicted, why }) => {
    const row = document.createElement("tr");
    if (why === "chosen") row.className = "chosen";
    const cells = [candidate, duration(predicted.latency_p50_s), duration(predicted.latency_p95_s), predicted.quality.toFixed(2), why];
    for (const cell of cells) row.insertCell().textContent = cell;
    return row;
  });
  $("plans").tBodies[0].replaceChildren(...rows);
  $("plans").hidden = false;
}

function take(chunk) {
  if (chunk.error) return fail(chunk.error.message);
  $("answer").append(chunk.choices[0]?.delta.content ?? "");
  const told = chunk.hybrid;
  if (told?.type === "draft") addSteps(told);
  if (told?.type === "drafted") state.draft = told.text;
  if (told?.type === "patch") showEdits(state.draft, told.edits);
  if (told?.type === "result") showResult(told);
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (held + value).split("\n\n");
    held = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}

async function send(submitted) {
  submitted.preventDefault();
  clear();
  state.controller = new AbortController();
  $("send").disabled = true;
  $("stop").disabled = false;
  $("status").textContent = "answering";
  try {
    const body = JSON.stringify(requestBody());
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: headers(), body, signal: state.controller.signal,
    });
    if (!response.ok) {
      const told = await response.json();
      return fail(`${response.status}: ${told.error.message}`);
    }
    for await (const data of events(response)) if (data !== "[DONE]") take(JSON.parse(data));
    if ($("error").hidden) $("status").textContent = "answered";
  } catch (error) {
    if (error.name === "AbortError") $("status").textContent = "stopped";
    else fail(`the server cannot be reached: ${error.message}`);
  } finally {
    $("send").disabled = false;
    $("stop").disabled = true;
  }
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const base = () => new URL(".", location.href).href;

function asCurl() {
  const key = $("key").value ? " -H 'authorization: Bearer KEY'" : "";
  const body = quoted(JSON.stringify(requestBody()));
  return `curl -N ${base()}v1/chat/completions${key} -H 'content-type: application/json' -d ${body}`;
}

function asPython() {
  const { model, messages, hybrid } = requestBody();
  const fields = { budget: hybrid.budget };
  for (const name of ["task", "refine", "max_denoising_steps"]) if (hybrid[name]) fields[name] = hybrid[name];
  return [
    "import openai",
    "",
    `client = openai.OpenAI(base_url="${base()}v1", api_key="${$("key").value ? "KEY" : "none"}")`,
    "answer = client.chat.completions.create(",
    `    model=${JSON.stringify(model)},`,
    `    messages=${JSON.stringify(messages)},`,
    `    extra_body={"hybrid": ${JSON.stringify(fields)}},`,
    ")",
    "print(answer.choices[0].message.content)",
  ].join("\n");
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    $("status").textContent = `copied as ${what}`;
  } catch {
    $("status").textContent = text;
  }
}

$("form").addEventListener("submit", send);
$("stop").addEventListener("click", () => state.controller?.abort());
$("scrubber").addEventListener("input", () => {
  clearInterval(state.timer);
  showStep(Number($("scrubber").value));
});
$("replay").addEventListener("click", replay);
$("key").addEventListener("change", listPolicies);
$("copy-curl").addEventListener("click", () => copy(asCurl(), "curl"));
$("copy-python").addEventListener("click", () => copy(asPython(), "Python"));
for (const id of ["budget", "steps"]) $(id).addEventListener("input", showSliders);
showSliders();
listPolicies();
