// What makes pages of the console more pleasant. Every page is whole without it.
"use strict";

// Times in the zone of whoever reads them.
const pad = (n, width = 2) => String(n).padStart(width, "0");
function localTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    if (Number.isNaN(at.getTime())) continue;
    const clock = `${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}`;
    time.title = time.dateTime;
    time.textContent = "clock" in time.dataset
      ? `${clock}.${pad(at.getMilliseconds(), 3)}`
      : `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())} ${clock}`;
  }
}

// `/` goes to the search, `g` and a letter to a page.
let before = "";
document.addEventListener("keydown", (event) => {
  const target = event.target;
  const typing = target instanceof HTMLElement && target.matches("input, textarea, select, [contenteditable]");
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (typing) {
    if (event.key === "Escape") target.blur();
    return;
  }
  if (event.key === "/") {
    event.preventDefault();
    const search = document.getElementById("q");
    if (search) search.focus();
    else location.assign("/sessions");
  }
  const page = { s: "/sessions", a: "/approvals", h: "/hosts", p: "/policies" }[event.key];
  if (before === "g" && page) location.assign(page);
  before = event.key;
});

// A filter that is chosen is used at once.
for (const select of document.querySelectorAll(".filters select")) {
  select.addEventListener("change", () => select.form.requestSubmit());
}

// A part of the page is fetched again when something changed; at most once in a while.
const quiet = document.body.dataset.live === "/live/approvals" ? 0 : 1500;
let waiting = false;
let again = false;
async function refresh() {
  if (document.hidden) return;
  if (waiting) {
    // What is being fetched may be older than this change.
    again = true;
    return;
  }
  waiting = true;
  try {
    const answer = await fetch(location.href, { headers: { accept: "text/html" } });
    if (answer.redirected) return location.reload();
    if (answer.ok) {
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of document.querySelectorAll("[data-part]")) {
        const other = fresh.querySelector(`[data-part="${part.dataset.part}"]`);
        if (other && !part.contains(document.activeElement)) {
          localTimes(other);
          part.replaceWith(document.adoptNode(other));
        }
      }
    }
  } catch {
    // The next change or the next reload brings it.
  }
  setTimeout(() => {
    waiting = false;
    if (again) {
      again = false;
      refresh();
    }
  }, quiet);
}
if (document.body.dataset.live) {
  const source = new EventSource(document.body.dataset.live);
  source.addEventListener("changed", refresh);
  let greeted = false;
  source.addEventListener("hello", (event) => {
    // Something may have been missed after a gap, or since the page was made.
    if (greeted || event.data !== document.body.dataset.told) refresh();
    greeted = true;
  });
  document.addEventListener("visibilitychange", refresh);
  addEventListener("pagehide", () => source.close());
}

// New entries of a session that runs.
const list = document.querySelector("[data-follow]");
if (list) {
  const source = new EventSource(`${list.dataset.follow}?after=${list.dataset.after}`);
  const note = document.querySelector("[data-following]");
  source.addEventListener("open", () => { note.hidden = false; });
  source.addEventListener("entries", (event) => {
    const atEnd = innerHeight + scrollY >= document.body.scrollHeight - 80;
    const fresh = new DOMParser().parseFromString(`<ol>${event.data}</ol>`, "text/html");
    localTimes(fresh);
    for (const entry of fresh.querySelectorAll("li.entry")) {
      if (document.getElementById(entry.id)) continue;
      entry.classList.add("fresh");
      list.append(document.adoptNode(entry));
    }
    if (atEnd) scrollTo(0, document.body.scrollHeight);
  });
  source.addEventListener("ended", () => {
    source.close();
    note.textContent = "The session has ended.";
    for (const state of document.querySelectorAll("[data-state]")) {
      state.textContent = "ended";
      state.className = "tag";
    }
  });
  addEventListener("pagehide", () => source.close());
}

// How long a request still waits.
function countdown() {
  for (const left of document.querySelectorAll("[data-until]")) {
    const seconds = Math.max(0, Math.round((Number(left.dataset.until) - Date.now()) / 1000));
    const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
    left.textContent = seconds === 0 ? "time is up"
      : h ? `${h}h${pad(m)}m left` : m ? `${m}m${pad(s)}s left` : `${s} s left`;
  }
}
if (document.querySelector("[data-until], [data-live='/live/approvals']")) setInterval(countdown, 1000);

localTimes(document);
