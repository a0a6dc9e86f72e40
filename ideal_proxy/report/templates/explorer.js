"use strict";

/* ---------------------------------------------------------------- numbers out of the page's JSON */

const DELTA = 1e-3;

function bytes(text) { return Uint8Array.from(atob(text), c => c.charCodeAt(0)); }
function doubles(text) { return new Float64Array(bytes(text).buffer); }
function singles(text) { return new Float32Array(bytes(text).buffer); }

/* Draws of a parameter vector: whole steps away from the point. */
function drawsOf(packed, point) {
  const step = doubles(packed.step), whole = new Int16Array(bytes(packed.steps).buffer), P = point.length, found = [];
  for (let s = 0; s < whole.length; s += P) found.push(point.map((value, p) => value + step[p] * whole[s + p]));
  return found;
}

/* Make the model ready: arrays decoded, features of the fitted runs computed once. */
function openModel(packed) {
  const m = {...packed};
  m.theta = m.theta.map(doubles);
  m.thetaDraws = m.theta_draws.map((draws, j) => drawsOf(draws, m.theta[j]));
  m.kernels = m.kernels.map(kernel => {
    const all = doubles(kernel.runs), D = kernel.centre.length, runs = [];
    for (let r = 0; r < all.length; r += D) runs.push(features(kernel, all.subarray(r, r + D)));
    return {...kernel, runs};
  });
  m.processes = m.processes.map(process => {
    const beta = doubles(process.beta), draws = drawsOf(process.draws, beta), ofDraw = {};
    m.form[process.capability].forEach((form, s) => { if (form === process.form) ofDraw[s] = draws.shift(); });
    return {...process, beta, ofDraw};
  });
  return m;
}

/* ---------------------------------------------------------------- the fitted response (docs/how-it-works.md) */

/* Repeated rows count less and less. */
function effective(m, volumes) {
  return m.rho.map((rho, i) => {
    const v = i < volumes.length ? volumes[i] : 0;
    if (!m.available || v <= m.available[i]) return v;
    return m.available[i] * (1 + rho * (1 - Math.exp(-(v / m.available[i] - 1) / rho)));
  });
}

function sigmoid(t) { return 0.5 * (1 + Math.tanh(0.5 * t)); }

function law(theta, [low, high], logX, harm) {
  const D = logX.length, gamma = sigmoid(theta[3]), least = Math.exp(gamma * Math.log(DELTA));
  let s = 1, harmed = 0;
  for (let i = 0; i < D; i++) s += Math.exp(theta[4 + i]) * (Math.exp(gamma * logX[i]) - least);
  if (theta.length > 4 + D) for (let i = 0; i < D; i++) harmed += theta[4 + D + i] * harm[i];
  const fallen = Math.exp(-Math.exp(theta[2]) * Math.log(Math.max(s, 1e-300)));
  return low + (high - low) * sigmoid(theta[0]) + Math.exp(theta[1]) * fallen + harmed;
}

function features(kernel, x) {
  const turn = {x: t => t, root: t => Math.sqrt(t + DELTA), log: t => Math.log(t + kernel.shift)}[kernel.feature];
  return Float64Array.from(x, (value, i) => (turn(value) - kernel.centre[i]) / kernel.length);
}

function likeness(kernel, x) {
  const here = features(kernel, x);
  return Float64Array.from(kernel.runs, run => {
    let sum = 0;
    if (kernel.shape === "matern") {
      for (let i = 0; i < run.length; i++) sum += (here[i] - run[i]) ** 2;
      const r = Math.sqrt(5 * sum);
      return (1 + r + r * r / 3) * Math.exp(-r);
    }
    for (let i = 0; i < run.length; i++) sum += here[i] * run[i];
    return kernel.shape === "linear" ? 1 + sum : (1 + sum) ** 2;
  });
}

function processAt(process, k, beta) {
  let inside = process.centre;
  for (let r = 0; r < beta.length; r++) inside += k[r] * beta[r];
  return process.floor === null ? inside : process.floor + Math.exp(inside);
}

/* Predict every capability at one mixture: the point, and where asked every posterior draw. */
function predict(m, volumes, withDraws) {
  const u = effective(m, volumes), x = u.map(value => value / m.unit), logX = x.map(value => Math.log(value + DELTA));
  const total = m.kappa + u.reduce((a, b) => a + b, 0), harm = u.map(value => total > 0 ? value / total : 0);
  const likenesses = m.kernels.map(kernel => likeness(kernel, x)), J = m.theta.length;
  const original = (j, y, known, bent = 0) =>
    m.sign[j] * (m.location[j] + m.scale[j] * (m.centre[j] + known * (y - m.centre[j]) + bent));
  const away = m.bends ? x.map((value, i) => Math.log(value + m.bends.shift) - m.bends.centre[i]) : [];
  const bent = (j, s) => away.reduce((sum, value, i) => sum + value * m.bends.slopes[j][s][i], 0);
  const onLaw = j => m.weights[j].reduce((sum, weight, c) => sum + weight * m.on_law[c], 0);
  const y = m.theta.map((theta, j) => onLaw(j) ? onLaw(j) * law(theta, m.bounds[j], logX, harm) : 0);
  const drawn = [];
  for (let j = 0; withDraws && j < J; j++) {
    drawn.push(m.thetaDraws[j].map((theta, s) => m.on_law[m.form[j][s]] ? law(theta, m.bounds[j], logX, harm) : 0));
  }
  for (const process of m.processes) {
    const j = process.capability, k = likenesses[process.kernel];
    y[j] += m.weights[j][process.form] * processAt(process, k, process.beta);
    if (withDraws) for (const s in process.ofDraw) drawn[j][s] += processAt(process, k, process.ofDraw[s]);
  }
  return {
    point: y.map((value, j) => original(j, value, m.known[j])),
    draws: drawn.map((values, j) => values.map((value, s) => original(j, value, m.known_draws[j][s], bent(j, s)))),
  };
}

/* ---------------------------------------------------------------- one mixture against base */

function spread(values) {
  const mean = values.reduce((a, b) => a + b, 0) / values.length;
  return Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length);
}

/* 1 is base and lower is better: losses as ratios, scores as differences over their scale. */
function relative(data, j, value, base) {
  return data.scale[j] === null ? value / base : 1 + data.signs[j] * (value - base) / data.scale[j];
}

function objective(data, ratios) {
  return data.weights ? ratios.reduce((sum, ratio, j) => sum + data.weights[j] * ratio, 0) : Math.max(...ratios);
}

function openData(packed) {
  const data = {...packed, model: openModel(packed.model), noise: packed.noise && doubles(packed.noise)};
  data.there = predict(data.model, data.base, true);
  const flat = packed.optima ? singles(packed.optima) : [], D = data.base.length;
  data.choices = [];
  for (let k = 0; k < flat.length; k += D) {
    const volumes = [...flat.slice(k, k + D)], ratios = ratiosOf(data, volumes);
    data.choices.push({volumes, ratios, value: objective(data, ratios)});
  }
  return data;
}

function ratiosOf(data, volumes) {
  return predict(data.model, volumes, false).point.map((value, j) => relative(data, j, value, data.there.point[j]));
}

/* Standard deviation of a sum whose terms have these, and the correlation of what runs leave. */
function spreadOfMean(data, spreads) {
  return Math.sqrt(Math.max(0, spreads.reduce((sum, a, i) =>
    sum + a * spreads.reduce((inner, b, j) => inner + data.together[i][j] * b, 0), 0)));
}

/* Ratios of the capabilities and the objective's gain, each as [value, lower, upper]. */
function compare(data, volumes) {
  const here = predict(data.model, volumes, true), J = here.point.length, S = data.model.draws;
  const same = volumes.every((v, i) => v === data.base[i]);
  const ratios = here.point.map((value, j) => relative(data, j, value, data.there.point[j]));
  const draws = here.draws.map((values, j) =>
    values.map((value, s) => relative(data, j, value, data.there.draws[j][s])));
  const run = data.run.map((sd, j) =>
    same ? 0 : sd / Math.abs(data.scale[j] === null ? data.there.point[j] : data.scale[j]));
  let known, noise = 0;
  if (data.weights) {
    known = spread([...Array(S).keys()].map(s => objective(data, draws.map(values => values[s]))));
    const drawn = draws.map((values, j) => data.weights[j] * spread(values)), alone = Math.hypot(...drawn);
    if (alone > 0) known *= spreadOfMean(data, drawn) / alone;
    noise = spreadOfMean(data, run.map((sd, j) => data.weights[j] * sd));
  } else {
    const worst = [];
    for (let s = 0; s < S; s++) for (let k = 0; k < data.noise.length; k += J) {
      worst.push(Math.max(...draws.map((values, j) => values[s] + data.noise[k + j] * run[j])));
    }
    known = spread(worst);
  }
  const around = (value, half) => [value, value - data.z * half, value + data.z * half];
  return {
    losses: here.point,
    ratios: ratios.map((ratio, j) => around(ratio, Math.hypot(spread(draws[j]), run[j]))),
    gain: around(1 - objective(data, ratios), Math.hypot(known, noise)),
  };
}

/* ---------------------------------------------------------------- what the sliders do */

/* Bring the total back to base's: the other volumes follow in proportion, each within its reach. */
function keepTotal(data, volumes, held) {
  const total = v => v.reduce((sum, rows, i) => sum + data.kept[i] * rows, 0), wanted = total(data.base);
  const clamp = (rows, i) => Math.min(Math.max(rows, data.low[i]), data.high[i]);
  const scaled = factor => volumes.map((rows, i) =>
    i === held ? rows : clamp((rows + data.eta) * factor - data.eta, i));
  let low = 1e-6, high = 1e6;
  for (let k = 0; k < 80; k++) {
    const middle = Math.sqrt(low * high);
    if (total(scaled(middle)) < wanted) low = middle; else high = middle;
  }
  const found = scaled(high);
  if (held >= 0) found[held] = clamp(found[held] + (wanted - total(found)) / data.kept[held], held);
  return found;
}

function toSlider(data, i, rows) {
  const [low, high] = [data.low[i], data.high[i]].map(end => Math.log(end + data.eta));
  return high > low ? Math.min(1, Math.max(0, (Math.log(rows + data.eta) - low) / (high - low))) : 0.5;
}

function fromSlider(data, i, t) {
  const [low, high] = [data.low[i], data.high[i]].map(end => Math.log(end + data.eta));
  return Math.min(data.high[i], Math.max(data.low[i], Math.exp(low + t * (high - low)) - data.eta));
}

/* Of all optima the best one within the limits; where none is, the one that misses them least. */
function choose(data, limits) {
  let best = null;
  data.choices.forEach((choice, k) => {
    const missed = Math.max(0, ...choice.ratios.map((ratio, j) => ratio - 1 - limits[j]));
    if (!best || missed < best.missed - 1e-9 || (missed <= best.missed + 1e-9 && choice.value < best.value)) {
      best = {...choice, missed, number: k};
    }
  });
  const fitting = data.choices.filter(choice => choice.ratios.every((ratio, j) => ratio - 1 <= limits[j] + 1e-9));
  return {...best, fitting: fitting.length};
}

/* ---------------------------------------------------------------- text and drawings */

const at = id => document.getElementById(`x-${id}`);
const many = rows => Math.round(rows).toLocaleString("en-US");
function percent(share, digits = 1) {
  const text = (100 * Math.abs(share)).toFixed(digits);
  return `${Number(text) === 0 ? "±" : share < 0 ? "−" : "+"}${text} %`;
}

function draw(parent, tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return parent.appendChild(made);
}

function mark(svg, share, name) {
  draw(svg, "line", {x1: `${100 * share}%`, x2: `${100 * share}%`, y1: 0, y2: 24, class: name});
}

function domainText(data, volumes, i) {
  const rows = volumes[i], whole = volumes.reduce((sum, v, k) => sum + v * data.tokens[k], 0);
  const change = data.base[i] ? `, ${percent(rows / data.base[i] - 1, 0)} against base` : ", new";
  return `repeat ${(rows / data.available[i]).toFixed(2)}×, ` +
    `${(100 * rows * data.tokens[i] / (whole || 1)).toFixed(1)} % of tokens${change}`;
}

function totalText(data, volumes, found) {
  const sum = per => volumes.reduce((total, rows, i) => total + rows * per[i], 0);
  const base = per => data.base.reduce((total, rows, i) => total + rows * per[i], 0);
  const steps = total => Math.ceil(total / data.batch - 1e-9);
  const [gain, lower, upper] = found.gain.map(value => percent(value, 2));
  return `Objective gains ${gain} [${lower}, ${upper}]. ${many(sum(data.tokens))} tokens, ` +
    `${many(sum(data.supervised))} of them supervised; the full-size run costs ` +
    `${percent(sum(data.tokens) / base(data.tokens) - 1)} against base and takes ` +
    `${many(steps(sum(data.a_step)))} steps (base ${many(steps(base(data.a_step)))}).`;
}

function cautionText(data, volumes) {
  const total = volumes.reduce((sum, rows, i) => sum + rows * data.tokens[i], 0), [least, most] = data.totals;
  return total > most * 1.02 || total * 1.02 < least
    ? "No run had such a total of tokens, so this is a guess: keep the total, or trust it less." : "";
}

/* ---------------------------------------------------------------- the page */

function start(data) {
  const D = data.base.length, J = data.signs.length, all = [...Array(J).keys()];
  data.eta = 0.01 * data.base.reduce((a, b) => a + b, 0) / D;
  let volumes = [...data.proposal], anchor = volumes, limits = all.map(() => Infinity), front = [];
  const ends = scaleOfChanges(data), share = change => (Math.min(ends[1], Math.max(ends[0], change)) - ends[0]) / (ends[1] - ends[0]);

  function show() {
    const found = compare(data, volumes);
    volumes.forEach((rows, i) => {
      const said = domainText(data, volumes, i);
      at(`volume-${i}`).value = Math.round(1000 * toSlider(data, i, rows));
      at(`volume-${i}`).setAttribute("aria-valuetext", `${many(rows)} rows, ${said}`);
      if (document.activeElement !== at(`rows-${i}`)) at(`rows-${i}`).value = rows;
      at(`said-${i}`).textContent = said;
    });
    found.ratios.forEach((ratio, j) => {
      const [value, lower, upper] = ratio.map(end => end - 1);
      const side = upper < 0 ? "better" : lower > 0 ? "worse" : "unsure", over = value > limits[j] + 1e-9;
      at(`change-${j}`).textContent = `${percent(value)} [${percent(lower)}, ${percent(upper)}], ` +
        `${found.losses[j].toPrecision(4)}${data.kinds[j] === "loss" ? " nats" : ""}`;
      at(`change-${j}`).className = side;
      const svg = at(`interval-${j}`);
      svg.replaceChildren();
      mark(svg, share(0), "m-base");
      draw(svg, "line", {x1: `${100 * share(lower)}%`, x2: `${100 * share(upper)}%`, y1: 12, y2: 12, class: `i-${side}`});
      draw(svg, "circle", {cx: `${100 * share(value)}%`, cy: 12, r: 5, class: `c-${side}`});
      const wish = limits[j] === Infinity ? "no limit" : limits[j] < 0
        ? `at least ${(-100 * limits[j]).toFixed(1)} % better` : `at most ${(100 * limits[j]).toFixed(1)} % worse`;
      at(`limited-${j}`).textContent = wish + (over ? ": missed" : "");
      at(`limited-${j}`).className = over ? "worse" : "";
      at(`limit-${j}`).value = limits[j] === Infinity ? 1000 : Math.round(1000 * share(limits[j]));
      at(`limit-${j}`).setAttribute("aria-valuetext", `${wish}; predicted ${at(`change-${j}`).textContent}`);
    });
    at("total").textContent = totalText(data, volumes, found);
    at("caution").textContent = cautionText(data, volumes);
    at("caution").hidden = !at("caution").textContent;
    const axes = [Number(at("across").value), Number(at("up").value)];
    front = drawFront(at("front"), data, axes, found.ratios.map(ratio => ratio[0]), k => {
      take(data.choices[k].volumes, "Mixture taken.");
    });
    at("copied").hidden = true;
  }

  function take(mixture, said) {
    volumes = mixture.map(Math.round);
    anchor = volumes;
    show();
    at("status").textContent = `${said} ${at("total").textContent}`;
  }

  function move(i, rows) {
    const wanted = [...anchor];
    wanted[i] = Math.min(data.high[i], Math.max(data.low[i], rows));
    volumes = (at("keep").checked ? keepTotal(data, wanted, i) : wanted).map(Math.round);
    show();
  }

  for (let i = 0; i < D; i++) {
    const slider = at(`volume-${i}`), rows = at(`rows-${i}`), svg = at(`marks-${i}`);
    const settle = () => take(volumes, `${data.domains[i]}: ${many(volumes[i])} rows.`);
    slider.addEventListener("input", () => move(i, fromSlider(data, i, slider.value / 1000)));
    slider.addEventListener("change", settle);
    rows.addEventListener("change", () => { if (rows.value !== "") { move(i, Number(rows.value)); settle(); rows.value = volumes[i]; } });
    [rows.min, rows.max] = [data.low[i], data.high[i]];
    slider.disabled = rows.disabled = data.high[i] - data.low[i] < 1;
    const [low, high] = data.moves[i].map(end => toSlider(data, i, end));
    draw(svg, "rect", {x: `${100 * low}%`, width: `${100 * (high - low)}%`, y: 4, height: 16, class: "m-moves"});
    mark(svg, toSlider(data, i, data.base[i]), "m-base");
    if (data.free) mark(svg, toSlider(data, i, data.free[i]), "m-free");
    mark(svg, toSlider(data, i, data.proposal[i]), "m-proposal");
  }
  function wish(wanted) {
    limits = wanted;
    const found = choose(data, limits);
    volumes = found.volumes.map(Math.round);
    show();
    at("found").textContent = found.missed > 1e-9
      ? `None of ${data.choices.length} mixtures is within all limits; this one misses them least, by ${(100 * found.missed).toFixed(1)} points.`
      : `${found.fitting} of ${data.choices.length} mixtures are within the limits; this one has the best objective.`;
  }
  for (const j of all) {
    const slider = at(`limit-${j}`), settle = () => take(volumes, at("found").textContent);
    slider.addEventListener("input", () => wish(limits.map((limit, k) => k !== j ? limit
      : slider.value >= 1000 ? Infinity : Math.round(1000 * (ends[0] + slider.value / 1000 * (ends[1] - ends[0]))) / 1000)));
    slider.addEventListener("change", settle);
  }
  const settleWish = wanted => { wish(wanted); take(volumes, at("found").textContent); };
  at("careful").addEventListener("click", () => settleWish(limits.map(limit => Math.min(limit, 0.01))));
  at("unlimited").addEventListener("click", () => settleWish(all.map(() => Infinity)));

  const predicted = ratiosOf(data, data.proposal), most = predicted.indexOf(Math.max(...predicted));
  for (const [id, chosen] of [["across", -1], ["up", most]]) {
    [-1, ...all].forEach(axis => at(id).add(new Option(axis < 0 ? "objective" : data.capabilities[axis], axis, false, axis === chosen)));
    at(id).addEventListener("change", show);
  }
  at("front").addEventListener("keydown", event => {
    const steps = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity}[event.key];
    if (!steps) return;
    event.preventDefault();
    const place = front.findIndex(k => data.choices[k].volumes.every((rows, i) => rows === volumes[i]));
    const next = place < 0 ? 0 : Math.min(front.length - 1, Math.max(0, place + steps));
    take(data.choices[front[next]].volumes, `Point ${next + 1} of ${front.length} of the front.`);
  });
  for (const [id, write] of [["command", asCommand], ["yaml", asYaml], ["mixture", asMixture]]) {
    at(id).addEventListener("click", () => {
      const box = at("copied");
      box.value = write(data, volumes);
      box.hidden = false;
      box.select();
      const said = ok => { at("status").textContent = ok ? "Copied." : "Copy the selected text."; };
      if (navigator.clipboard) navigator.clipboard.writeText(box.value).then(() => said(true), () => said(false)); else said(false);
    });
  }
  at("base").addEventListener("click", () => take(data.base, "Base."));
  at("proposal").addEventListener("click", () => take(data.proposal, `${at("proposal").textContent}.`));
  if (data.free) at("free").addEventListener("click", () => take(data.free, "Free answer."));
  at("keep").addEventListener("change", () => { if (at("keep").checked) take(keepTotal(data, volumes, -1), "Total kept."); });
  show();
  document.getElementById("explorer").hidden = at("link").hidden = false;
}

/* Changes that the capabilities' tracks reach over: those of all optima, and room for an interval. */
function scaleOfChanges(data) {
  const changes = data.choices.flatMap(choice => choice.ratios.map(ratio => ratio - 1));
  const low = Math.min(...changes, -0.01), high = Math.max(...changes, 0.01), room = 0.15 * (high - low);
  return [low - room, high + room];
}

/* ---------------------------------------------------------------- the front */

const WIDTH = 640, HEIGHT = 300, LEFT = 64, RIGHT = 16, TOP = 12, BOTTOM = 44;

/* Numbers of the choices of which none is better in both, from left to right. */
function frontOf(points) {
  const order = points.map((_, k) => k).sort((a, b) => points[a][0] - points[b][0] || points[a][1] - points[b][1]);
  let least = Infinity;
  return order.filter(k => points[k][1] < least - 1e-6 && ((least = points[k][1]), true));
}

function ticks(low, high) {
  const raw = (high - low) / 5, unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(k => k * unit).find(k => k >= raw), found = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) found.push(tick);
  return found;
}

/* Draw all optima in two coordinates; `take` is told the number of the one that is chosen. */
function drawFront(svg, data, axes, here, take) {
  const value = (ratios, axis) => (axis < 0 ? objective(data, ratios) : ratios[axis]) - 1;
  const points = data.choices.map(choice => axes.map(axis => value(choice.ratios, axis)));
  const marks = [["base", data.base], ["proposal", data.proposal], ...(data.free ? [["free", data.free]] : [])]
    .map(([name, mixture]) => [name, axes.map(axis => value(ratiosOf(data, mixture), axis))]);
  const now = axes.map(axis => value(here, axis)), front = frontOf(points);
  const every = [...points, ...marks.map(entry => entry[1]), now];
  const ends = [0, 1].map(k => {
    const [low, high] = [Math.min(...every.map(p => p[k])), Math.max(...every.map(p => p[k]))];
    return [low - 0.05 * (high - low) - 1e-4, high + 0.05 * (high - low) + 1e-4];
  });
  const across = t => LEFT + (WIDTH - LEFT - RIGHT) * (t - ends[0][0]) / (ends[0][1] - ends[0][0]);
  const up = t => HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (t - ends[1][0]) / (ends[1][1] - ends[1][0]);
  svg.replaceChildren();
  const text = (x, y, anchor, said) => { draw(svg, "text", {x, y, "text-anchor": anchor}).textContent = said; };
  for (const tick of ticks(...ends[0])) {
    draw(svg, "line", {x1: across(tick), x2: across(tick), y1: TOP, y2: HEIGHT - BOTTOM, class: "axis"});
    text(across(tick), HEIGHT - BOTTOM + 16, "middle", percent(tick));
  }
  for (const tick of ticks(...ends[1])) {
    draw(svg, "line", {x1: LEFT, x2: WIDTH - RIGHT, y1: up(tick), y2: up(tick), class: "axis"});
    text(LEFT - 6, up(tick) + 4, "end", percent(tick));
  }
  const name = axis => axis < 0 ? "objective" : data.capabilities[axis];
  text((LEFT + WIDTH) / 2, HEIGHT - 8, "middle", `across: ${name(axes[0])}; up: ${name(axes[1])}`);
  const onFront = new Set(front);
  for (const k of [...points.keys()].sort((a, b) => onFront.has(a) - onFront.has(b))) {
    const [cx, cy] = [across(points[k][0]), up(points[k][1])];
    draw(svg, "circle", {cx, cy, r: onFront.has(k) ? 4.5 : 3, class: onFront.has(k) ? "f-front" : "f-other"})
      .addEventListener("click", () => take(k));
  }
  for (const [kind, [x, y]] of marks) draw(svg, "rect", {x: across(x) - 5, y: up(y) - 5, width: 10, height: 10, class: `f-${kind}`});
  draw(svg, "circle", {cx: across(now[0]), cy: up(now[1]), r: 9, class: "f-here"});
  return front;
}

/* ---------------------------------------------------------------- taking a mixture along */

function asCommand(data, volumes) {
  const quoted = text => `'${text.replaceAll("'", "'\\''")}'`;
  return ["ideal-proxy what-if .", ...volumes.map((rows, i) => `--set ${quoted(`${data.domains[i]}=${rows}`)}`)].join(" \\\n  ");
}

function asYaml(data, volumes) {
  const lines = volumes.map((rows, i) => `  - name: ${JSON.stringify(data.domains[i])}\n    base: ${rows}`);
  return ["# in a run file, beside each domain's path", "domains:", ...lines].join("\n");
}

function asMixture(data, volumes) {
  const tokens = volumes.map((rows, i) => Math.round(rows * data.tokens[i])), whole = tokens.reduce((a, b) => a + b, 0);
  const domains = data.mixture.domains.map((domain, i) => ({
    ...domain, rows: volumes[i], tokens: tokens[i], supervised_tokens: Math.round(volumes[i] * data.supervised[i]),
    share: tokens[i] / (whole || 1), repeat: volumes[i] / data.available[i],
    base_rows: data.base[i], change: data.base[i] ? volumes[i] / data.base[i] - 1 : null,
  }));
  return JSON.stringify({...data.mixture, domains, predicted_gain: 1 - objective(data, ratiosOf(data, volumes))}, null, 1);
}

const embedded = document.getElementById("explorer-data");
if (embedded) start(openData(JSON.parse(embedded.textContent)));
