// Plays an asciicast from standard input in the asciinema player's own core and prints what a
// viewer would see: the output, the terminal's sizes, the duration, errors.
import { readFileSync, readdirSync } from "node:fs";
import { pathToFileURL } from "node:url";

const dist = `${process.argv[2]}/asciinema-player/dist`;
const core = readdirSync(dist).find((name) => /^core-.*\.js$/.test(name));
const { C: Core } = await import(pathToFileURL(`${dist}/${core}`));

const shown = { output: "", sizes: [], errors: [] };
const error = (...said) => shown.errors.push(said.map(String).join(" "));
const silent = () => {};
const logger = { log: silent, debug: silent, info: silent, warn: error, error };
const player = new Core({ data: readFileSync(0, "utf8") }, { logger, speed: 1000, preload: true });
const on = (name, does) => player.addEventListener(name, does);
on("output", (event) => { shown.output += event; });
on("reset", (event) => shown.sizes.push([event.size.cols, event.size.rows]));
on("resize", (event) => shown.sizes.push([event.cols, event.rows]));
on("error", (event) => error(event?.message ?? event));
const ended = new Promise((resolve) => on("ended", resolve));
player.terminalReady();
await player.play();
await ended;
shown.duration = await player.getDuration();
process.stdout.write(JSON.stringify(shown), () => process.exit(0));
