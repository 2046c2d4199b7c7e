// Opens a page in a headless browser, as a reader would, and says what it saw as a line of JSON.
//
//     node look.mjs PAGE.html FOLDER
//
// Screenshots in both colour schemes and at phone width, and the PDF, go into FOLDER.
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import chromium from "@sparticuz/chromium";
import puppeteer from "puppeteer-core";

const [page_path, folder] = process.argv.slice(2).map((path) => resolve(path));
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const DESKTOP = { width: 1280, height: 900 };
const PHONE = { width: 375, height: 800, isMobile: true, hasTouch: true };

const browser = await puppeteer.launch({
  executablePath: await chromium.executablePath(),
  headless: "shell",
  // Without the flags that the package has for its own hosts, which switch the checks of origins off.
  args: ["--no-sandbox", "--no-zygote", "--disable-gpu", "--font-render-hinting=none"],
});

async function opened(viewport, scheme) {
  const page = await browser.newPage();
  const seen = { errors: [], requests: [] };
  page.on("console", (message) => message.type() !== "log" && seen.errors.push(message.text()));
  page.on("pageerror", (error) => seen.errors.push(String(error)));
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith("data:") && url !== pathToFileURL(page_path).href) seen.requests.push(url);
  });
  await page.setViewport(viewport);
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  await page.goto(pathToFileURL(page_path).href, { waitUntil: "load" });
  return [page, seen];
}

async function violations(page) {
  await page.evaluate(axe); // by the debugger, which no policy of the page holds back
  const found = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
  return found.violations.map((each) => `${each.id}: ${each.nodes.length}: ${each.nodes[0].html.slice(0, 200)}`);
}

// The shown cells of a column, and what its header says of the order.
function column(page, table, number) {
  return page.evaluate(
    (name, index) => {
      const found = document.querySelector(`table[aria-labelledby="table-${name}"]`);
      const cells = [...found.tBodies[0].rows].map((row) => row.cells[index].dataset.value ?? row.cells[index].innerText);
      return { order: found.tHead.rows[0].cells[index].getAttribute("aria-sort"), cells };
    },
    table,
    number,
  );
}

function header(page, table, number) {
  return page.$(`table[aria-labelledby="table-${table}"] thead th:nth-child(${number + 1}) button`);
}

const report = {};
for (const scheme of ["light", "dark"]) {
  const [page, seen] = await opened(DESKTOP, scheme);
  report[scheme] = { ...seen, violations: await violations(page) };
  await page.screenshot({ path: join(folder, `${scheme}.png`), fullPage: true });
  await page.close();
}

const [phone, of_phone] = await opened(PHONE, "light");
report.phone = { ...of_phone, violations: await violations(phone) };
report.phone.overflow = await phone.evaluate(() => document.documentElement.scrollWidth - innerWidth);
await phone.screenshot({ path: join(folder, "phone.png"), fullPage: true });
await phone.close();

const [page, seen] = await opened(DESKTOP, "light");
const TABLE = "accuracy";
const TASK = 1;
const RIGHT = 6;
report.before = await column(page, TABLE, RIGHT);
await (await header(page, TABLE, RIGHT)).click();
report.clicked = await column(page, TABLE, RIGHT);
await (await header(page, TABLE, RIGHT)).click();
report.clicked_again = await column(page, TABLE, RIGHT);
// By the keyboard alone: from the header before, a step on, and then the key.
await (await header(page, TABLE, TASK - 1)).focus();
await page.keyboard.press("Tab");
await page.keyboard.press("Enter");
report.entered = await column(page, TABLE, TASK);
await page.keyboard.press("Space");
report.spaced = await column(page, TABLE, TASK);
report.after = seen;
const pdf = await page.pdf({ format: "A4", printBackground: true });
writeFileSync(join(folder, "page.pdf"), pdf);
report.pdf = { bytes: pdf.length, begins: Buffer.from(pdf.slice(0, 5)).toString() };
await browser.close();
console.log(JSON.stringify(report));
