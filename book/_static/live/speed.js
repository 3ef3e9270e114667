/* What the whole and the merged model took, for a device, a model and a batch: recorded cells, nothing between them. */
(function () {
  "use strict";
  const { html, svg } = Live;
  const WIDE = 360,
    LEFT = 92,
    RIGHT = 282,
    ROW = 26;

  /** A labelled list of options, `[text, is there]` each; `change(index)` is called when another one is chosen. */
  function select(label, change) {
    const id = Live.name("select"),
      input = html("select", { id });
    input.addEventListener("change", () => change(input.selectedIndex));
    return {
      element: html("div", { class: "live-select" }, html("label", { for: id }, label), input),
      fill(options, index) {
        const made = options.map(function ([text, there]) {
          const option = html("option", {}, there ? text : `${text}: not measured`);
          option.disabled = !there;
          return option;
        });
        input.replaceChildren(...made);
        input.selectedIndex = index;
      },
    };
  }

  const unique = (values) => [...new Set(values)];

  Live.figure("speed", function (box, data) {
    let [device, model, batch] = data.start;
    const devices = unique(data.cells.map((c) => c.device));
    const of = () => data.cells.filter((c) => c.device === device);
    const models = () => unique(of().map((c) => c.model));
    const batches = () => unique(of().map((c) => c.batch)).sort((a, b) => a - b);
    const cell = (b) => of().find((c) => c.model === model && c.batch === b);

    const selects = [
      select("Device", function (i) {
        device = devices[i];
        draw();
      }),
      select("Model", function (i) {
        model = models()[i];
        draw();
      }),
      select("Batch", function (i) {
        batch = batches()[i];
        draw();
      }),
    ];
    const drawing = svg("svg", { viewBox: `0 0 ${WIDE} ${3 * ROW + 8}`, role: "img" });
    const reading = Live.reading();

    function bar(row, label, colour, time, whole, most, share) {
      const at = (value) => LEFT + ((RIGHT - LEFT) * value) / most,
        y = row * ROW + 5;
      const parts = [
        svg("text", { x: LEFT - 6, y: y + 13, "text-anchor": "end" }, label),
        svg("rect", { x: LEFT, y, width: Math.max(at(time) - LEFT, 1), height: 16, class: `live-of-${colour}` }),
        svg("text", { x: at(time) + 5, y: y + 13 }, `${time} ms`),
      ];
      if (share) {
        const x = at(share * whole);
        parts.push(svg("line", { x1: x, x2: x, y1: y - 3, y2: y + 19, class: "live-counted" }));
      }
      return parts;
    }

    /** Keep what was chosen where it was recorded, else take the first that was. */
    function settle() {
      if (!models().includes(model)) model = models()[0];
      if (!cell(batch)) batch = batches().find((b) => cell(b));
    }
    function draw() {
      settle();
      const here = cell(batch),
        most = Math.max(here.whole, ...here.times);
      selects[0].fill(
        devices.map((d) => [d, true]),
        devices.indexOf(device),
      );
      selects[1].fill(
        models().map((m) => [m, true]),
        models().indexOf(model),
      );
      selects[2].fill(
        batches().map((b) => [String(b), Boolean(cell(b))]),
        batches().indexOf(batch),
      );
      drawing.replaceChildren(
        ...bar(0, "whole model", "whole", here.whole, here.whole, most),
        ...data.methods.flatMap((m, i) =>
          bar(i + 1, m.label, m.colour, here.times[i], here.whole, most, here.flops[i]),
        ),
      );
      const each = data.methods.map(function (m, i) {
        const [, middle] = here.faster[i];
        return `${m.label} ${here.times[i]} ms, ${Live.decimal(middle)} times as fast`;
      });
      drawing.setAttribute("aria-label", `Whole model ${here.whole} ms; ${each.join("; ")}`);
      const faster = here.faster.filter((f) => f[1] > 1).length;
      Live.say(
        reading,
        `Keep ${data.keep}, ${here.tokens[0]} tokens to ${here.tokens[1]}: whole model ${here.whole} ms per call, `,
        [each.join("; ")],
        `. The line marks what the multiply-accumulates alone would leave, ` +
          `${Math.round(100 * here.flops[0])} % of the whole model's. `,
        faster === 2 ? "Merging pays here." : faster ? "It pays with one method only." : "Merging does not pay here.",
      );
    }

    box.append(html("div", { class: "live-controls" }, ...selects.map((s) => s.element)), drawing, reading);
    draw();
  });
})();
