// The dashboard reads the reports API and nothing else. Whatever comes from it is written as text, never as HTML.

import { makeChart } from "./chart.js";

const REFRESH_MS = 2_000;
/** A request that takes longer is given up and tried again. */
const REQUEST_MS_MAX = 10_000;
/** A click is to be on a report within 10 seconds, so older counts are a reason to look. */
const LAG_MS_MAX = 15_000;
/** A minute is final about six minutes after it began, when all is well. */
const THROUGH_MS_MAX = 10 * 60_000;
const RANGES = {
  "1h": { text: "the last hour", unit: "minute", step: 60_000, count: 60 },
  "6h": { text: "the last 6 hours", unit: "minute", step: 60_000, count: 360 },
  "24h": { text: "the last 24 hours", unit: "hour", step: 3_600_000, count: 24 },
  "7d": { text: "the last 7 days", unit: "hour", step: 3_600_000, count: 168 },
};
const TOP = 10;

const $ = (id) => document.getElementById(id);
const format = new Intl.NumberFormat("en-US");
const number = (value) => format.format(value);
const write = (node, text) => { if (node.textContent !== text) node.textContent = text; };
const clock = (at) => new Date(at).toISOString().slice(11, 19) + " UTC";
const minute = (at) => new Date(at).toISOString().slice(0, 16).replace("T", " ");

/** How far the service's clock is ahead of the browser's: ages are judged by the service's. */
let ahead = 0;
const now = () => Date.now() + ahead;
/** What is shown, kept in the page's address. */
const shown = { range: "1h", campaign: "" };
/** The last answers: { time, ads, campaigns } and when they came. */
let last = null;
let running = null, timer = null, failure = null;

const chart = makeChart($("chart"), $("readout"), number, (bucket) => {
  const state = bucket.provisional ? "provisional" : "final";
  return `${minute(bucket.start)} UTC: ${number(bucket.clicks)} ${bucket.clicks === 1 ? "click" : "clicks"}, ${state}`;
});

function age(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 90) return `${seconds} s ago`;
  if (seconds < 90 * 60) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 48 * 3600) return `${Math.round(seconds / 3600)} h ago`;
  return `${number(Math.round(seconds / 86400))} days ago`;
}

async function ask(url, signal) {
  let response, body;
  try {
    response = await fetch(url, { signal });
    // A refusal says why in JSON too, unless it comes from a proxy in between.
    body = await response.json().catch((error) => { if (response.ok) throw error; });
  } catch (error) {
    throw new Error(error.name === "TimeoutError" ? "the service took too long to answer" : "the service does not answer");
  }
  const date = Date.parse(response.headers.get("date"));
  // The header tells whole seconds; clocks that agree to two seconds are taken as equal.
  if (!Number.isNaN(date)) ahead = Math.abs(date - Date.now()) > 2_000 ? date - Date.now() : 0;
  if (!response.ok) throw new Error(body?.detail ?? `the service answered ${response.status}`);
  return body;
}

function urls() {
  const { unit, step, count } = RANGES[shown.range];
  const to = (Math.floor(now() / step) + 1) * step;
  const url = (more) => {
    const query = new URLSearchParams();
    if (shown.campaign) query.set("campaign_id", shown.campaign);
    query.set("from", new Date(to - count * step).toISOString().replace(".000", ""));
    query.set("to", new Date(to).toISOString().replace(".000", ""));
    for (const [name, value] of Object.entries(more)) query.set(name, value);
    return "/api/v1/reports/clicks?" + query.toString().replaceAll("%3A", ":");
  };
  return {
    time: url({ groupBy: unit }),
    ads: url({ groupBy: "ad_id", orderBy: "-clicks", limit: TOP }),
    campaigns: url({ groupBy: "campaign_id", orderBy: "-clicks", limit: TOP }),
  };
}

/** Asks for everything, once; a newer call ends an older one. */
async function refresh() {
  clearTimeout(timer);
  running?.abort();
  const mine = running = new AbortController();
  const signal = AbortSignal.any([mine.signal, AbortSignal.timeout(REQUEST_MS_MAX)]);
  try {
    if (last === null) await ask("/healthz", signal);
    const asked = urls(), { range, campaign } = shown;
    const [time, ads, campaigns] = await Promise.all([asked.time, asked.ads, asked.campaigns].map((url) => ask(url, signal)));
    last = { at: now(), range, campaign, urls: asked, time, ads, campaigns };
    failure = null;
  } catch (error) {
    if (mine.signal.aborted) return;
    failure = error.message;
  }
  if (running !== mine) return;
  running = null;
  show();
  if (!document.hidden) timer = setTimeout(refresh, REFRESH_MS);
}

/** Brings the whole page in line with the last answers. */
function show() {
  if (last !== null) {
    const { time, ads, campaigns } = last;
    const { unit, text } = RANGES[last.range];
    const { clicks, provisionalClicks } = time.totals;
    write($("clicks"), number(clicks));
    write($("final"), number(clicks - provisionalClicks));
    write($("provisional"), number(provisionalClicks));
    write($("range-text"), last.campaign ? `${text}, ${last.campaign}` : text);
    for (const [id, url] of [["totals", "time"], ["time", "time"], ["ads", "ads"], ["top-campaigns", "campaigns"]]) {
      $(id + "-json").href = last.urls[url];
    }
    const buckets = series(time, unit);
    chart.draw(buckets, Date.parse(time.completeThrough));
    write($("time-title"), `Clicks by ${unit}`);
    write($("series-unit"), `${unit === "minute" ? "Minute" : "Hour"} (UTC)`);
    seriesTable(buckets);
    write($("ads-title"), last.campaign ? `Top ads of ${last.campaign}` : "Top ads");
    topTable("ads", ads, "adId", (id) => document.createTextNode(id));
    topTable("top-campaigns", campaigns, "campaignId", campaignButton);
    if (!last.campaign) choices(campaigns.rows);
    const empty = time.rows.length === 0;
    $("empty").hidden = !empty;
    $("empty-filtered").hidden = !last.campaign;
    $("empty-all").hidden = last.campaign !== "";
    write($("empty-campaign"), last.campaign);
    write($("empty-title"), `No billed clicks in ${text}`);
  }
  ages();
}

/** What changes by the second, without a request. */
function ages() {
  const stale = last !== null && (failure !== null || now() - last.at > LAG_MS_MAX);
  $("main").classList.toggle("stale", stale);
  $("error").hidden = failure === null;
  const kept = last ? ` Shown is what was known at ${clock(last.at)}.` : "";
  write($("error"), failure === null ? "" : `No ${last ? "new " : ""}figures: ${failure}.${kept}`);
  if (last === null) {
    write($("status"), failure === null ? "loading …" : "no figures yet");
    return;
  }
  const through = Date.parse(last.time.completeThrough), refreshed = Date.parse(last.time.dataLastRefreshed);
  const everFinal = through > Date.UTC(2000, 0);
  const today = new Date(now()).toISOString().slice(0, 10) === last.time.completeThrough.slice(0, 10);
  write($("through"), everFinal ? (today ? minute(through).slice(11) : minute(through)) + " UTC" : "nothing yet");
  write($("through-age"), everFinal ? `${age(now() - through)}; earlier minutes are final` : "no minute is final yet");
  write($("status"), `Counts of ${clock(refreshed)}, ${age(now() - refreshed)}. All times are UTC. Refreshes every 2 seconds.`);
  const lags = [];
  if (now() - refreshed > LAG_MS_MAX) lags.push(`provisional counts were last brought up to date ${age(now() - refreshed)}`);
  if (everFinal && now() - through > THROUGH_MS_MAX) lags.push(`no minute became final since ${minute(through)} UTC, ${age(now() - through)}`);
  $("lag").hidden = failure !== null || lags.length === 0;
  write($("lag"), lags.length ? `Behind: ${lags.join("; ")}.` : "");
}

/** One bucket for each minute or hour of the range, also for those without clicks. */
function series(report, unit) {
  const step = RANGES[last.range].step, through = Date.parse(report.completeThrough);
  const rows = new Map(report.rows.map((row) => [Date.parse(row[unit]), row]));
  const buckets = [];
  for (let start = Date.parse(report.query.from); start < Date.parse(report.query.to); start += step) {
    const row = rows.get(start), end = start + step;
    buckets.push({ start, end, clicks: row?.clicks ?? 0, provisional: row?.provisional ?? end > through });
  }
  return buckets;
}

/** Makes `body` have `count` rows of `cells` cells, and returns them. The second cell is a number. */
function tableRows(body, count, cells) {
  while (body.rows.length > count) body.deleteRow(-1);
  while (body.rows.length < count) {
    const row = body.insertRow();
    for (let i = 0; i < cells; i++) row.insertCell().className = i === 1 ? "number" : "";
  }
  return [...body.rows];
}

function seriesTable(buckets) {
  const body = $("series").querySelector("tbody");
  const newest = $("series").open ? [...buckets].reverse() : [];
  tableRows(body, newest.length, 3).forEach((row, i) => {
    write(row.cells[0], minute(newest[i].start));
    write(row.cells[1], number(newest[i].clicks));
    write(row.cells[2], newest[i].provisional ? "provisional" : "final");
  });
}

function topTable(id, report, key, name) {
  tableRows($(id).querySelector("tbody"), report.rows.length, 2).forEach((row, i) => {
    const { [key]: value, clicks } = report.rows[i];
    // Replaced only when it differs, so that the focus stays where it is.
    if (row.cells[0].textContent !== value) row.cells[0].replaceChildren(name(value));
    write(row.cells[1], number(clicks));
  });
  const notes = [];
  if (report.truncated) notes.push(`The first ${report.rows.length}; there are more.`);
  if (report.rows.some((row) => row.provisional)) notes.push("Includes clicks that are not final yet.");
  write($(id + "-note"), report.rows.length ? notes.join(" ") : "none in this range");
}

function campaignButton(id) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = id;
  button.title = "Show only this campaign";
  button.addEventListener("click", () => set({ campaign: button.textContent }));
  return button;
}

function choices(rows) {
  const ids = rows.map((row) => row.campaignId);
  const list = $("campaigns");
  if (ids.join() === [...list.options].map((option) => option.value).join()) return;
  list.replaceChildren(...ids.map((id) => new Option(id, id)));
}

/** Changes what is shown, and remembers it in the address. */
function set(change) {
  Object.assign(shown, change);
  const query = new URLSearchParams();
  if (shown.range !== "1h") query.set("range", shown.range);
  if (shown.campaign) query.set("campaign", shown.campaign);
  history.replaceState(null, "", query.size ? "?" + query : location.pathname);
  controls();
  refresh();
}

function controls() {
  $("controls").elements.range.value = shown.range;
  $("campaign").value = shown.campaign;
  $("clear").hidden = shown.campaign === "";
}

$("controls").addEventListener("submit", (event) => {
  event.preventDefault();
  set({ campaign: $("campaign").value.trim() });
});
$("controls").addEventListener("change", (event) => {
  if (event.target.name === "range") set({ range: event.target.value });
  else if (event.target.id === "campaign") set({ campaign: event.target.value.trim() });
});
$("clear").addEventListener("click", () => { set({ campaign: "" }); $("campaign").focus(); });
$("series").addEventListener("toggle", show);
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });

const given = new URLSearchParams(location.search);
if (Object.hasOwn(RANGES, given.get("range") ?? "")) shown.range = given.get("range");
shown.campaign = given.get("campaign") ?? "";
controls();
setInterval(ages, 1_000);
refresh();
