/* What the interactive figures share: their start, controls, drawing, data.

   A figure stands in the page as <div class="live" data-live="KIND">: a still picture, and its data as JSON. The script
   of its kind calls `Live.figure(KIND, draw)`; `draw(box, data, whole)` fills the box, and the still picture, which is in
   `whole` until then, goes. Where scripts do not run the still picture stays. Nothing is fetched, so that a page works from file://. */
(function () {
  "use strict";

  const SVG = "http://www.w3.org/2000/svg";
  let names = 0;

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  /** An HTML element with attributes and children (elements or text). */
  function html(tag, attributes, ...children) {
    return fill(document.createElement(tag), attributes, children);
  }

  /** The same for SVG. */
  function svg(tag, attributes, ...children) {
    return fill(document.createElementNS(SVG, tag), attributes, children);
  }

  /** An id that no other element has. */
  function name(stem) {
    names += 1;
    return `live-${stem}-${names}`;
  }

  /** A labelled range input over the texts of its values; `change(index)` is called when it moves. */
  function slider(label, texts, start, change) {
    const id = name("slider"),
      output = html("output", { for: id });
    const input = html("input", { id, type: "range", min: 0, max: texts.length - 1, step: 1, value: start });
    function show() {
      output.textContent = texts[+input.value];
      input.setAttribute("aria-valuetext", texts[+input.value]);
    }
    input.addEventListener("input", function () {
      show();
      change(+input.value);
    });
    show();
    const element = html("div", { class: "live-slider" }, html("label", { for: id }, label, " ", output), input);
    return {
      element,
      get value() {
        return +input.value;
      },
      set value(index) {
        input.value = index;
        show();
      },
    };
  }

  /** A slider that a button plays to its end, a step in `pause` milliseconds; a hand on the slider stops it. */
  function player(label, texts, start, pause, draw) {
    const last = texts.length - 1;
    let timer = null;
    const steps = slider(label, texts, start, function () {
      stop();
      draw();
    });
    const play = button("Play", () => (timer === null ? go() : stop()));
    function stop() {
      clearInterval(timer);
      timer = null;
      play.textContent = "Play";
    }
    function go() {
      if (steps.value === last) steps.value = 0;
      play.textContent = "Pause";
      timer = setInterval(function () {
        steps.value = steps.value + 1;
        if (steps.value === last) stop();
        draw();
      }, pause);
      draw();
    }
    return { slider: steps, button: play };
  }

  /** Radio buttons in a row; `change(index)` is called when another one is chosen. */
  function choice(legend, texts, start, change) {
    const group = name("choice");
    let value = start;
    const inputs = texts.map((_, i) => html("input", { type: "radio", name: group, id: `${group}-${i}`, value: i }));
    inputs[start].checked = true;
    inputs.forEach(function (input, i) {
      input.addEventListener("change", function () {
        value = i;
        change(i);
      });
    });
    const pairs = inputs.flatMap((input, i) => [input, html("label", { for: input.id }, texts[i])]);
    const row = html("div", { class: "live-options" }, ...pairs);
    return {
      element: html("fieldset", { class: "live-choice" }, html("legend", {}, legend), row),
      get value() {
        return value;
      },
      set(index) {
        value = index;
        inputs[index].checked = true;
      },
    };
  }

  function button(text, press) {
    const element = html("button", { type: "button", class: "live-button" }, text);
    element.addEventListener("click", press);
    return element;
  }

  /** The line that says in words what the figure shows. Screen readers speak it when it changes. */
  function reading() {
    return html("p", { class: "live-reading", role: "status" });
  }

  /** Text of a paragraph, from pieces: a string is plain, [string] is strong. */
  function say(element, ...pieces) {
    element.replaceChildren(...pieces.map((p) => (Array.isArray(p) ? html("strong", {}, p[0]) : p)));
  }

  /** A box round a drawing of rows x columns patches in which a click, a touch or the arrow keys choose a patch. */
  function picker(drawing, rows, columns, label, pick) {
    const element = html(
      "div",
      {
        class: "live-picker",
        tabindex: 0,
        role: "application",
        "aria-roledescription": "map of patches",
        "aria-label": `${label}. Arrow keys choose a patch.`,
      },
      drawing,
    );
    let at = 0;
    function choose(row, column) {
      at = Math.min(Math.max(row, 0), rows - 1) * columns + Math.min(Math.max(column, 0), columns - 1);
      pick(at);
    }
    element.addEventListener("click", function (event) {
      const box = drawing.getBoundingClientRect();
      choose(
        Math.floor(((event.clientY - box.top) / box.height) * rows),
        Math.floor(((event.clientX - box.left) / box.width) * columns),
      );
    });
    element.addEventListener("keydown", function (event) {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      choose(Math.floor(at / columns) + step[0], (at % columns) + step[1]);
    });
    return {
      element,
      set value(patch) {
        at = patch;
      },
    };
  }

  /** A number with so many digits, and a minus sign that is one. */
  function decimal(value, digits = 2) {
    return value.toFixed(digits).replace("-", "−");
  }

  /** Bytes from base64. */
  function bytes(text) {
    return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  }

  /** A path round squares of `side`: the borders between patches for which `apart(p, q)` holds, edges as q = -1. */
  function borders(rows, columns, side, apart) {
    const at = (r, c) => (r < 0 || c < 0 || r >= rows || c >= columns ? -1 : r * columns + c);
    let path = "";
    for (let r = 0; r <= rows; r++) {
      for (let c = 0; c <= columns; c++) {
        const here = at(r, c),
          left = at(r, c - 1),
          above = at(r - 1, c);
        if (r < rows && apart(here, left)) path += `M${c * side} ${r * side}v${side}`;
        if (c < columns && apart(here, above)) path += `M${c * side} ${r * side}h${side}`;
      }
    }
    return path;
  }

  /** A map of `size` [width, height], its layers one over another. */
  function stacked(size, ...layers) {
    return svg("svg", { viewBox: `0 0 ${size[0]} ${size[1]}`, role: "img", class: "live-map" }, ...layers);
  }

  /** The patches of every token, where `at` says which token a patch is in. */
  function members(at) {
    const tokens = [];
    at.forEach((token, patch) => (tokens[token] = tokens[token] || []).push(patch));
    return tokens;
  }

  /** Mean colour of some patches; `means` has three bytes for each patch. */
  function colour(patches, means) {
    const mean = [0, 1, 2].map((i) => patches.reduce((sum, p) => sum + means[3 * p + i], 0) / patches.length);
    return `rgb(${mean.map(Math.round).join(" ")})`;
  }

  /** Where a patch lies, in words. */
  function place(patch, columns) {
    return `row ${Math.floor(patch / columns) + 1}, column ${(patch % columns) + 1}`;
  }

  /** Squares of `side` as one path. */
  function squares(patches, columns, side) {
    return Array.from(
      patches,
      (p) => `M${(p % columns) * side} ${Math.floor(p / columns) * side}h${side}v${side}h-${side}z`,
    ).join("");
  }

  /** Draw every figure of a kind. Scripts of this page are deferred, so that its boxes are there when this runs. */
  function figure(kind, draw) {
    for (const box of document.querySelectorAll(`.live[data-live="${kind}"]`)) {
      const drawn = html("div", { class: "live-body" });
      draw(drawn, JSON.parse(box.querySelector('script[type="application/json"]').textContent), box);
      box.querySelectorAll("img, noscript").forEach((picture) => picture.remove());
      box.append(drawn);
      box.classList.add("live-on");
    }
  }

  const still = window.matchMedia && window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  window.Live = {
    figure,
    html,
    svg,
    name,
    slider,
    player,
    choice,
    button,
    reading,
    say,
    picker,
    decimal,
    bytes,
    borders,
    stacked,
    members,
    colour,
    place,
    squares,
    still,
  };
})();
