/* Draws all points of the map in place of the picture that came with the page, and lets the pointer and the list meet
   on it. Colours, shapes and words are those of the page's legend, so that nothing is said twice. */
(() => {
  "use strict";
  const figure = document.querySelector(".vec-map");
  if (!figure) return;

  const svg = figure.querySelector("svg");
  const legend = [...figure.querySelectorAll(".vec-map-legend li")];
  const NEAR = 14; // pixels from a point at which the pointer means it

  const encode = (part) =>
    Array.from(new TextEncoder().encode(String(part)), (byte) => {
      const character = String.fromCharCode(byte);
      if (/[A-Za-z0-9_-]/.test(character)) return character;
      return character === " " ? "+" : "~" + byte.toString(16).toUpperCase().padStart(2, "0");
    }).join("");

  const element = (name, className) => {
    const made = document.createElement(name);
    made.className = className;
    return made;
  };

  const show = (data) => {
    const box = element("div", "vec-canvas");
    const [base, top] = [element("canvas", "vec-points"), element("canvas", "vec-pointed")];
    const tip = element("div", "vec-tip");
    base.setAttribute("role", "img");
    base.setAttribute("aria-label", svg.getAttribute("aria-label"));
    top.setAttribute("aria-hidden", "true");
    tip.setAttribute("aria-hidden", "true");
    tip.hidden = true;
    tip.dir = "auto";
    box.append(base, top, tip);
    svg.replaceWith(box);
    const part = figure.querySelector(".vec-map-part");
    if (part) {
      part.textContent =
        data.shown < data.count ? `The picture has ${data.shown} of them: to read all takes too long here.` : "";
    }

    const url = (point) => {
      const path = point.length > 5 ? point[5] : point[3].map(encode).join(",");
      return data.row_url && path ? data.row_url + path : null;
    };
    const hits = data.hits.filter((hit) => hit.x !== null);
    const places = new Map();
    for (const point of data.points) places.set(url(point), [point[0], point[1], point[4]]);
    for (const hit of hits) places.set(url([0, 0, 0, hit.key]), [hit.x, hit.y, hit.title]);
    const spots = [...data.points, ...hits.map((hit) => [hit.x, hit.y])];
    if (data.query) spots.push([data.query.x, data.query.y]);
    let [left, right, low, high] = [Infinity, -Infinity, Infinity, -Infinity];
    for (const [x, y] of spots) {
      left = Math.min(left, x);
      right = Math.max(right, x);
      low = Math.min(low, y);
      high = Math.max(high, y);
    }

    let scale, width, height, grid;
    const place = (x, y) => [
      width / 2 + (x - (left + right) / 2) * scale,
      height / 2 - (y - (low + high) / 2) * scale,
    ];
    const prepared = (canvas) => {
      const ratio = window.devicePixelRatio || 1;
      canvas.width = width * ratio;
      canvas.height = height * ratio;
      const pen = canvas.getContext("2d");
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      return pen;
    };

    const draw = () => {
      width = box.clientWidth;
      height = Math.round(Math.min(width * 0.7, Math.max(280, window.innerHeight * 0.8)));
      box.style.height = `${height}px`;
      scale = Math.min((width - 48) / (right - left || 1e-9), (height - 48) / (high - low || 1e-9));
      const pen = prepared(base);
      prepared(top);
      grid = new Map();
      const ratio = window.devicePixelRatio || 1;
      const count = data.points.length;
      const size = (count > 10000 ? 0.5 : count > 2000 ? 0.75 : 1) * (width < 500 ? 0.8 : 1);
      const kinds = legend.map((item) => ({
        color: getComputedStyle(item.querySelector("svg")).color,
        path: new Path2D(item.querySelector("path")?.getAttribute("d") ?? ""),
      }));
      pen.globalAlpha = hits.length ? 0.45 : count > 5000 ? 0.7 : 1;
      data.points.forEach((point, number) => {
        const [x, y] = place(point[0], point[1]);
        const kind = kinds[point[2]];
        pen.setTransform(ratio * size, 0, 0, ratio * size, x * ratio, y * ratio);
        pen.fillStyle = kind.color;
        pen.fill(kind.path);
        const cell = `${Math.floor(x / NEAR)} ${Math.floor(y / NEAR)}`;
        if (!grid.has(cell)) grid.set(cell, []);
        grid.get(cell).push(number);
      });
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      pen.globalAlpha = 1;
      const style = getComputedStyle(figure);
      const paper = getComputedStyle(document.body).backgroundColor;
      pen.font = `bold 14px ${style.fontFamily}`;
      const numbered = new Set();
      for (const hit of hits) {
        const [x, y] = place(hit.x, hit.y);
        for (const [color, line] of [[paper, 5], [style.color, 2]]) {
          pen.strokeStyle = color;
          pen.lineWidth = line;
          pen.beginPath();
          pen.arc(x, y, 9, 0, 2 * Math.PI);
          pen.stroke();
        }
        if (numbered.has(hit.number)) continue;
        numbered.add(hit.number);
        pen.strokeStyle = paper;
        pen.lineWidth = 4;
        pen.strokeText(hit.number, x + 11, y - 5);
        pen.fillStyle = style.color;
        pen.fillText(hit.number, x + 11, y - 5);
      }
      if (data.query) {
        const [x, y] = place(data.query.x, data.query.y);
        pen.beginPath();
        for (let n = 0; n < 10; n++) {
          const reach = n % 2 ? 5 : 13;
          pen.lineTo(x + reach * Math.sin((n * Math.PI) / 5), y - reach * Math.cos((n * Math.PI) / 5));
        }
        pen.closePath();
        pen.fillStyle = style.getPropertyValue("--vec-star") || "#e8b400";
        pen.fill();
        pen.strokeStyle = style.color;
        pen.lineWidth = 1.5;
        pen.stroke();
      }
    };

    const point = (spot) => {
      const pen = prepared(top);
      tip.hidden = !spot;
      if (!spot) return;
      const [x, y] = place(spot[0], spot[1]);
      pen.strokeStyle = getComputedStyle(figure).color;
      pen.lineWidth = 3;
      pen.beginPath();
      pen.arc(x, y, 8, 0, 2 * Math.PI);
      pen.stroke();
      tip.textContent = spot[2];
      tip.style.left = `${Math.max(0, Math.min(x + 12, width - tip.offsetWidth - 4))}px`;
      tip.style.top = `${y + 14 + tip.offsetHeight > height ? y - 14 - tip.offsetHeight : y + 14}px`;
    };

    const under = (event) => {
      const frame = top.getBoundingClientRect();
      const [x, y] = [event.clientX - frame.left, event.clientY - frame.top];
      let [best, reach] = [null, NEAR * NEAR];
      for (let column = -1; column < 2; column++) {
        for (let row = -1; row < 2; row++) {
          const cell = `${Math.floor(x / NEAR) + column} ${Math.floor(y / NEAR) + row}`;
          for (const number of grid.get(cell) ?? []) {
            const [px, py] = place(data.points[number][0], data.points[number][1]);
            const distance = (px - x) ** 2 + (py - y) ** 2;
            if (distance <= reach) [best, reach] = [data.points[number], distance];
          }
        }
      }
      return best;
    };

    let pointed = null; // what the tip names is what a click opens, however the browser rounds
    const move = (event) => {
      pointed = under(event);
      const category = pointed && data.color ? data.color.values[pointed[2]].label : "";
      point(pointed && [pointed[0], pointed[1], category ? `${pointed[4]} · ${category}` : pointed[4]]);
      top.style.cursor = pointed && url(pointed) ? "pointer" : "default";
    };
    top.addEventListener("pointermove", move);
    top.addEventListener("pointerdown", move);
    top.addEventListener("pointerleave", () => point(null));
    top.addEventListener("click", (event) => {
      const address = pointed && url(pointed);
      if (!address) return;
      if (event.ctrlKey || event.metaKey) window.open(address, "_blank", "noopener");
      else window.location.assign(address);
    });

    const list = document.querySelector(".vec-map-list");
    const listed = (event) => {
      const link = event.target.closest("li")?.querySelector("a[href]");
      point((link && places.get(link.getAttribute("href"))) ?? null);
    };
    list.addEventListener("pointerover", listed);
    list.addEventListener("focusin", listed);
    list.addEventListener("pointerleave", () => point(null));
    list.addEventListener("focusout", () => point(null));

    new ResizeObserver(() => box.clientWidth !== width && draw()).observe(box);
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    draw();
  };

  fetch(figure.dataset.url, { headers: { accept: "application/json" } })
    .then((response) => (response.ok ? response.json() : null))
    .then((data) => data && data.ok && data.points.length && show(data))
    .catch(() => {}); // the picture that came with the page stays
})();
