/* Which patches have merged after each layer, for three methods side by side. */
(function () {
  "use strict";
  const { html, svg, bytes } = Live,
    { compose } = LiveMethods;
  const SIDE = 14; // of a patch in the drawing

  /** The plans of all layers, cut from one string of bytes: layer l has as many bytes as tokens enter it. */
  function cut(packed, tokens) {
    const all = bytes(packed);
    let from = 0;
    return tokens.slice(0, -1).map((n) => all.subarray(from, (from += n)));
  }

  /** One map: the photograph, over it the tokens of several patches in their mean colours, outlined. */
  function map(method, grid, pick) {
    const [rows, columns] = grid,
      size = [columns * SIDE, rows * SIDE];
    const photo = svg("image", { width: size[0], height: size[1] });
    const tokens = svg("g", { "shape-rendering": "crispEdges" });
    const lines = svg("path", { class: "live-outline" }),
      halo = svg("path", { class: "live-mark-halo" });
    const mark = svg("path", { class: "live-mark" });
    const drawing = Live.stacked(size, photo, tokens, lines, halo, mark);
    const picker = Live.picker(drawing, rows, columns, `Tokens of ${method.label}`, pick);
    const note = html("p", { class: "live-note" });
    const title = html(
      "p",
      { class: "live-title" },
      html("span", { class: `live-dot live-${method.colour}` }),
      method.label,
    );
    const element = html("div", { class: "live-panel" }, title, picker.element, note);
    function draw(picture, at, chosen, words) {
      const groups = Live.members(at),
        merged = groups.filter((patches) => patches.length > 1);
      photo.setAttribute("href", picture.photo);
      tokens.replaceChildren(
        ...merged.map((patches) =>
          svg("path", {
            d: Live.squares(patches, columns, SIDE),
            fill: Live.colour(patches, picture.means),
          }),
        ),
      );
      const several = (p) => p >= 0 && groups[at[p]].length > 1;
      const apart = (p, q) => p >= 0 && q >= 0 && at[p] !== at[q] && (several(p) || several(q));
      lines.setAttribute("d", Live.borders(rows, columns, SIDE, apart));
      const inside = (p) => chosen !== null && p >= 0 && at[p] === at[chosen];
      const ring = Live.borders(rows, columns, SIDE, (p, q) => inside(p) !== inside(q));
      [halo, mark].forEach((path) => path.setAttribute("d", ring));
      const alone = groups.length - merged.length,
        largest = Math.max(...groups.map((patches) => patches.length));
      note.textContent = merged.length ? `${alone} alone, largest ${largest}` : `${alone} patches`;
      drawing.setAttribute("aria-label", `${method.label}, ${words}: ${note.textContent}`);
      if (chosen !== null) picker.value = chosen;
      return chosen === null ? 0 : groups[at[chosen]].length;
    }
    return { element, draw };
  }

  /** A number with its name and a bar for its share of the whole. */
  function counter(label) {
    const number = html("span", { class: "live-number" }),
      of = html("span", { class: "live-of" });
    const bar = html("span", { class: "live-bar-fill" });
    const element = html(
      "div",
      { class: "live-counter" },
      html("span", { class: "live-of" }, label),
      html("span", {}, number, " ", of),
      html("span", { class: "live-bar" }, bar),
    );
    return {
      element,
      show(value, rest, share) {
        number.textContent = value;
        of.textContent = rest;
        bar.style.width = `${100 * share}%`;
      },
    };
  }

  Live.tokens = { SIDE, cut, map }; // the switches draw with them too

  Live.figure("token-map", function (box, data) {
    const [rows, columns] = data.grid,
      count = rows * columns,
      depth = data.whole.length - 1;
    const pictures = data.pictures.map((p) => ({ ...p, means: bytes(p.means) }));
    const plans = data.pictures.map((p) => p.plans.map((of) => of.map((packed, k) => cut(packed, data.tokens[k]))));
    let picture = 0,
      chosen = null;
    const giga = (macs) => (macs / 1e9).toFixed(2);

    const keep = Live.slider(
      "keep",
      data.keep.map((r) => `${Math.round(100 * r)} % in each layer`),
      data.start.keep,
      draw,
    );
    const texts = Array.from({ length: depth + 1 }, (_, l) => `${l} of ${depth} layers`);
    const { slider: layer, button: play } = Live.player("after", texts, data.start.layer, 700, draw);
    const which = Live.choice(
      "Photograph",
      pictures.map((p) => p.name),
      0,
      function (i) {
        picture = i;
        draw();
      },
    );
    const pick = function (patch) {
      chosen = patch;
      draw();
    };
    const maps = data.methods.map((method) => map(method, data.grid, pick));
    const tokens = counter("tokens left"),
      macs = counter("MACs so far");
    const counters = html("div", { class: "live-counters" }, tokens.element, macs.element);
    const reading = Live.reading();

    function draw() {
      const k = keep.value,
        l = layer.value,
        left = data.tokens[k][l];
      const words = `after ${texts[l]}, ${left} tokens`;
      const sizes = maps.map((m, i) =>
        m.draw(pictures[picture], compose(plans[picture][i][k], count, l), chosen, words),
      );
      const spent = data.macs.map((of) => of[k][l]),
        whole = data.whole[l];
      tokens.show(left, `of ${count}`, left / count);
      macs.show(`${giga(spent[0])} G`, `of ${giga(whole)} G`, spent[0] / whole);
      const each = data.methods.map((m, i) => `${m.label} ${giga(spent[i])}`).join(", ");
      const cost = l
        ? ` are left, and ${Math.round(100 * (1 - spent[0] / whole))} % of the multiply-accumulates so far are ` +
          `saved (${each} of ${giga(whole)} G).`
        : ", nothing has merged.";
      const joined =
        chosen === null
          ? ""
          : ` Patches in one token with that in ${Live.place(chosen, columns)}: ` +
            `${data.methods.map((m, i) => `${sizes[i]} (${m.label})`).join(", ")}.`;
      Live.say(reading, `After ${texts[l]} at keep ${data.keep[k]}: `, [`${left} of ${count} tokens`], cost, joined);
    }

    const first = html("div", { class: "live-controls live-brief" });
    if (pictures.length > 1) first.append(which.element);
    if (!Live.still) first.append(play);
    const controls = html("div", { class: "live-controls" }, keep.element, layer.element);
    box.append(first, controls, html("div", { class: "live-maps" }, ...maps.map((m) => m.element), counters), reading);
    draw();
  });
})();
