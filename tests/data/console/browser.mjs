// A person with a browser: logs in, searches, reads, replays, approves, ends, on a desk and on a
// phone, in light and dark, with and without script. Looks for script errors, refused loads and
// faults that axe-core finds, and takes a picture of every page.
//
//   node browser.mjs NPM_DIRECTORY '{"origin": "http://…", "shots": "DIRECTORY" or null,
//     "all": false, "chromium": "…",
//     "database": "SESSION", "terminal": "SESSION", "hostile": "SESSION", "live": "SESSION",
//     "holds": ["ID", "ID"]}'
//   node browser.mjs NPM_DIRECTORY '{"origin": "…", "chromium": "…", "who": "NAME",
//     "terminal": "SESSION", "shows": "WORDS"}'
//
// The second only plays a terminal.
//
// Prints what was done, a line each; ends with status 1 and a reason when something is wrong.

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const [npm, given] = process.argv.slice(2);
const asked = JSON.parse(given);
const modules = join(npm, 'node_modules');
const require = createRequire(pathToFileURL(join(modules, 'x.js')));
const puppeteer = require('puppeteer-core');
const axe = readFileSync(join(modules, 'axe-core/axe.min.js'), 'utf8');

const DESK = { width: 1280, height: 900 };
const PHONE = { width: 390, height: 844, isMobile: true, hasTouch: true, deviceScaleFactor: 2 };
const MISSING = '/sessions/01JAAAAAAAAAAAAAAAAAAAAAAA';
const faults = [];
let where = '';

const browser = await puppeteer.launch({
  executablePath: asked.chromium,
  args: ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'],
});

function say(text) { console.log(text); }
function check(condition, text) { if (!condition) throw new Error(`${where}: ${text}`); }

async function open(options = {}) {
  const context = await browser.createBrowserContext();
  const page = await context.newPage();
  await page.setViewport(options.phone ? PHONE : DESK);
  await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: options.scheme || 'light' }]);
  page.on('console', (m) => {
    const from = m.location().url || '';
    // The issuer's page and pages that are not there: a 404 of theirs is right.
    const right = !from.startsWith(asked.origin) || from.endsWith(MISSING);
    if (['error', 'warn', 'warning'].includes(m.type()) && !(right && m.text().includes('status of 404'))) {
      faults.push(`${where}: ${m.text()} ${from}`);
    }
  });
  page.on('pageerror', (e) => faults.push(`${where}: ${e.message}`));
  page.on('dialog', (d) => { faults.push(`${where}: a dialog: ${d.message()}`); d.dismiss(); });
  return page;
}

async function go(page, path) {
  where = path;
  return page.goto(asked.origin + path, { waitUntil: 'domcontentloaded' });
}

async function text(page) { return page.evaluate(() => document.body.innerText); }
async function has(page, words) { check((await text(page)).includes(words), `${words} is not there: ${await text(page)}`); }
async function until(page, words) {
  await page.waitForFunction((w) => document.body.innerText.includes(w), { timeout: 20000 }, words)
    .catch(async () => { throw new Error(`${where}: ${words} does not come: ${await text(page)}`); });
}

async function logIn(page, name) {
  await go(page, '/sessions');
  await page.waitForSelector('form button[name=login]');
  const buttons = await page.$$('form button[name=login]');
  for (const button of buttons) {
    if ((await button.evaluate((b) => b.textContent)) === name) {
      await Promise.all([page.waitForNavigation({ waitUntil: 'domcontentloaded' }), button.click()]);
      break;
    }
  }
  await page.waitForFunction((o) => location.origin === o, {}, asked.origin);
  await has(page, name);
}

async function judge(page, name) {
  await page.evaluate(axe);
  const result = await page.evaluate(() => window.axe.run(document, { resultTypes: ['violations'] }));
  for (const v of result.violations) {
    faults.push(`${name}: axe ${v.impact} ${v.id}: ${v.help}: ${v.nodes.map((n) => n.html).slice(0, 3).join(' ')}`);
  }
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  if (wide > 1) faults.push(`${name}: the page is ${wide} pixels too wide`);
}

async function shot(page, name) {
  if (!asked.shots) return;
  await page.screenshot({ path: join(asked.shots, `${name}.png`), fullPage: true });
}

// Every width and every scheme, not every pair of them, unless pictures are wanted of all.
const WAYS = asked.all
  ? [['light', false], ['dark', false], ['light', true], ['dark', true]]
  : [['light', false], ['dark', true]];

async function everyPage(name, pages) {
  for (const [scheme, phone] of WAYS) {
    const page = await open({ scheme, phone });
    await logIn(page, name);
    for (const [title, path] of pages) {
      await go(page, path);
      if (title.startsWith('play')) await page.waitForSelector('.ap-player, .lanes, .banner');
      const full = `${title}-${phone ? 'phone' : 'desk'}-${scheme}`;
      await judge(page, full);
      await shot(page, full);
    }
    await page.browserContext().close();
  }
  say(`looked at ${pages.length} pages in ${WAYS.length} ways`);
}

async function search(page) {
  await go(page, '/sessions');
  await page.keyboard.press('/');
  check(await page.evaluate(() => document.activeElement.id === 'q'), '/ does not reach the search');
  await page.keyboard.type('customers');
  await Promise.all([page.waitForNavigation(), page.keyboard.press('Enter')]);
  await has(page, 'FROM customers');
  const rows = await page.$$eval('.list tbody tr:not(.hit)', (all) => all.map((r) => r.innerText));
  check(rows.every((r) => r.includes('billing-bot')), `the search finds too much: ${rows}`);
  await Promise.all([page.waitForNavigation(), page.click('.hit a')]);
  await has(page, '**** 4242');
  await has(page, 'Unaltered');
  await page.keyboard.press('Tab');
  check(await page.evaluate(() => document.activeElement !== document.body), 'Tab reaches nothing');
  say('found a session by its statement');
}

async function skipLink(page) {
  await go(page, '/hosts');
  await page.keyboard.press('Tab');
  check(await page.evaluate(() => document.activeElement.className === 'skip'), 'no skip link first');
  await page.keyboard.press('Enter');
  check(await page.evaluate(() => location.hash === '#main'), 'the skip link leads nowhere');
  say('skipped to the content');
}

async function replay(page) {
  await go(page, `/sessions/${asked.terminal}/play`);
  await page.waitForSelector('.ap-player');
  await page.waitForSelector('.ap-overlay-start, .ap-overlay', { timeout: 20000 });
  await page.click('.ap-player');
  await until(page, asked.shows || 'app.service - the application');
  const outside = await page.evaluate(() => {
    const bar = document.querySelector('.ap-control-bar').getBoundingClientRect();
    const icons = [...document.querySelectorAll('.ap-control-bar button svg')];
    const boxes = icons.map((icon) => icon.getBoundingClientRect()).filter((box) => box.height > 0);
    return boxes.length < 2 || boxes.some((box) => box.top < bar.top || box.bottom > bar.bottom);
  });
  check(!outside, "the player's controls are cut off");
  await shot(page, 'player-running');
  say('replayed a terminal');
}

async function hostile(page) {
  for (const path of [`/sessions/${asked.hostile}`, `/sessions/${asked.hostile}/play`, '/sessions']) {
    await go(page, path);
    check((await page.title()) !== 'owned', 'recorded script ran');
    check(await page.evaluate(() => !document.querySelector('main img')), 'recorded markup is an element');
  }
  await shot(page, 'hostile');
  say('read a hostile session');
}

async function follow(page, ada) {
  await go(page, `/sessions/${asked.live}`);
  await until(page, 'Following');
  say('follow');
  await until(page, 'a new statement');
  say('followed a running session');
  await go(ada, `/sessions/${asked.live}`);
  await has(ada, 'End this session');
  await ada.type('#reason', 'this agent went astray');
  await Promise.all([ada.waitForNavigation(), ada.click('.danger button')]);
  await has(ada, 'The host was told to end this session.');
  await shot(ada, 'ended');
  say('ended a running session');
}

async function approve(page) {
  await go(page, '/approvals');
  await has(page, '2 requests wait.');
  await Promise.all([page.waitForNavigation(), page.click('.holds a.hold')]);
  await has(page, 'UPDATE invoices SET paid = true');
  await page.type('#reason', 'checked with finance');
  await judge(page, 'approval');
  await shot(page, 'approval-form');
  await Promise.all([page.waitForNavigation(), page.click('button[value=approve]')]);
  await has(page, 'Approved. The host has not answered yet.');
  await shot(page, 'approved');
  await go(page, '/approvals');
  await Promise.all([page.waitForNavigation(), page.click('.holds a.hold')]);
  await Promise.all([page.waitForNavigation(), page.click('button[value=deny]')]);
  await has(page, 'Denied. The host has not answered yet.');
  say('approved one request and denied another');
  await go(page, '/approvals');
  await has(page, 'Nothing waits.');
  const before = Date.now();
  say('raise');
  await until(page, 'One request waits.');
  say(`a new hold came by itself within ${Date.now() - before} ms`);
}

async function withoutScript() {
  const page = await open();
  await page.setJavaScriptEnabled(false);
  where = 'without script';
  await page.goto(`${asked.origin}/sessions`);
  await page.waitForSelector('form button[name=login]');
  await Promise.all([page.waitForNavigation(), page.click('form button[name=login]')]);
  for (const [path, selector] of [
    ['/sessions', '.list tbody tr'], [`/sessions/${asked.database}`, '.entries .stmt'],
    [`/sessions/${asked.terminal}`, '.entries .out'], ['/hosts', '.host dl'], ['/approvals', 'h1'],
    ['/policies', '.list tbody tr'], ['/policies/1', 'pre'],
  ]) {
    where = `${path} without script`;
    await page.goto(asked.origin + path);
    check(await page.$(selector), `no ${selector}`);
  }
  say('read everything without script');
}

try {
  const pages = [
    ['sessions', '/sessions'], ['session', `/sessions/${asked.database}`],
    ['terminal', `/sessions/${asked.terminal}`], ['play', `/sessions/${asked.terminal}/play`],
    ['play-db', `/sessions/${asked.database}/play`], ['hosts', '/hosts'], ['approvals', '/approvals'],
    ['policies', '/policies'], ['policy', '/policies/1'],
    ...(asked.holds || []).slice(0, 1).map((id) => ['approval', `/approvals/${encodeURIComponent(id)}`]),
    ['missing', MISSING], ['nothing', '/sessions?q=nowhere-to-be-found&agent=billing-bot'],
  ];
  const ann = await open();
  await logIn(ann, asked.who || 'Ann Approver');
  say('logged in');
  if (asked.who) {
    await replay(ann);
  } else {
    await search(ann);
    await skipLink(ann);
    await replay(ann);
    await hostile(ann);
    await everyPage('Ann Approver', pages);
    const ada = await open();
    await logIn(ada, 'Ada Admin');
    await follow(ann, ada);
    await approve(ann);
    await withoutScript();
  }
  if (faults.length) throw new Error(`${faults.length} faults`);
  say('done');
} catch (error) {
  console.log(`failed: ${error.stack || error}`);
  for (const fault of faults) console.log(`fault: ${fault}`);
  process.exitCode = 1;
} finally {
  await browser.close();
}
