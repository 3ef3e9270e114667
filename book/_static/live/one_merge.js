/* One merge of sixteen squares, step by step, by PiToMe or ToMe, in any order of the squares. */
(function () {
  "use strict";
  const { html, svg } = Live,
    { cosines, pitome, tome, assignment } = LiveMethods;
  const CELL = 45,
    SIDE = 36,
    WIDE = 8 * CELL,
    HIGH = 236;
  const STEPS = {
    PiToMe: ["Picture", "Energy", "Order", "Gate", "Match", "Merge", "Result"],
    ToMe: ["Picture", "Split", "Match", "Choice", "Merge", "Result"],
  };

  /** The next permutation: Fisher and Yates, with a generator of its own so that every visit shows the same ones. */
  function shuffler(count) {
    let state = 7;
    const random = () => (state = (state * 48271) % 2147483647) / 2147483647;
    return function () {
      const order = Array.from({ length: count }, (_, i) => i);
      for (let i = count - 1; i > 0; i--) {
        const j = Math.floor(random() * (i + 1));
        [order[i], order[j]] = [order[j], order[i]];
      }
      return order;
    };
  }

  /** The groups that merge, as one text of token names: equal texts are equal groups. */
  function groupsOf(slots, order) {
    const groups = new Map();
    slots.forEach((slot, place) => groups.set(slot, [...(groups.get(slot) || []), order[place]]));
    return [...groups.values()]
      .filter((g) => g.length > 1)
      .map((g) => g.sort((a, b) => a - b).join(" + "))
      .sort();
  }

  const css = (colour) => `rgb(${colour.map((v) => Math.round(255 * Math.min(Math.max(v, 0), 1))).join(" ")})`;
  const dark = (colour) => 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2] < 0.42;

  /** What every step needs: the plan for the tokens in this order, places counted from 0. */
  function solve(data, method, order) {
    const cos = cosines(order.map((i) => data.keys[i]));
    const plan = method === "PiToMe" ? pitome(cos, data.remove, data.margin) : tome(cos, data.remove);
    const slots = assignment(order.length, plan.a, plan.partner);
    const mean = slots.map(function (slot) {
      const members = order.filter((_, place) => slots[place] === slot);
      return [0, 1, 2].map((c) => members.reduce((sum, i) => sum + data.colours[i][c], 0) / members.length);
    });
    const size = slots.map((slot) => slots.filter((other) => other === slot).length);
    return { cos, plan, slots, mean, size, groups: groupsOf(slots, order) };
  }

  /** Where the square at a place stands: picture of 4 x 4, two rows, or A above B. */
  function raster(place) {
    return [(WIDE - 4 * CELL) / 2 + (place % 4) * CELL, 16 + Math.floor(place / 4) * (CELL + 8)];
  }
  const inRow = (column, y) => [column * CELL + (CELL - SIDE) / 2, y];

  function layout(state, solved, step) {
    const { plan } = solved,
      places = solved.slots.map((_, p) => p);
    if (step === "Picture" || step === "Energy" || step === "Result") return places.map(raster);
    const at = [];
    if (state.method === "PiToMe") {
      const candidates = 2 * plan.a.length;
      plan.order.forEach(function (place, rank) {
        if (step === "Order") at[place] = inRow(rank % 8, rank < 8 ? 40 : 140);
        else if (rank < candidates) at[place] = inRow(rank % 8, rank % 2 ? 104 : 22);
        else at[place] = inRow((rank - candidates) % 8, 184);
      });
    } else {
      places.forEach((place) => (at[place] = inRow(place >> 1, place % 2 ? 150 : 40)));
    }
    if (step === "Merge") plan.a.forEach((place, n) => (at[place] = at[plan.partner[n]]));
    return at;
  }

  /** Lines between A and B: [from, to, faint]. */
  function links(state, plan, step) {
    if (state.method === "PiToMe") return step === "Match" ? plan.a.map((a, n) => [a, plan.partner[n], false]) : [];
    const merged = new Set(plan.a);
    if (step === "Match") return plan.even.map((a, n) => [a, plan.wish[n], false]);
    return step === "Choice" ? plan.even.map((a, n) => [a, plan.wish[n], !merged.has(a)]) : [];
  }

  /** What a step does, in pieces for `Live.say`. The tokens are called by their numbers, not by their places. */
  function words(state, solved, step, data) {
    const { plan } = solved,
      k = data.remove,
      count = state.order.length,
      name = (place) => state.order[place];
    const joins = [plan.a.map((a, n) => `${name(a)} → ${name(plan.partner[n])}`).join(", ")];
    const unshuffled = data.keys.map((_, i) => i);
    const same = solve(data, state.method, unshuffled).groups.join() === solved.groups.join();
    const compared = same ? " The same groups as before shuffling." : " Other groups than before shuffling.";
    return {
      Picture: () => [`${count} tokens, each one square. ${k} of them are to go. Tokens are compared by hue.`],
      Energy: () => [
        "Every token gets its energy, the number under it: the mean over all tokens of the cosine, where that is at ",
        `least ${data.margin}, and of a penalty where it is not. Many look-alikes: high energy.`,
      ],
      Order: () => [
        "The tokens stand in the order of their energy, highest first: ",
        [
          plan.order
            .slice(0, count / 2)
            .map(name)
            .join(", "),
        ],
        " lead.",
      ],
      Gate: () => [
        `The gate: the ${2 * k} tokens of highest energy may merge; by turns they are in A (above) and in B. `,
        `The other ${count - 2 * k} are `,
        ["protected"],
        ".",
      ],
      Split: () => ["ToMe splits by place: the first, third, fifth token and so on are in A (above), the others in B."],
      Match: () => [
        "Each token of A finds the token of B with the highest cosine",
        ...(state.method === "PiToMe" ? [": ", joins, "."] : [". Not all of these pairs will merge."]),
      ],
      Choice: () => [`Of the pairs the ${k} most similar merge: `, joins, "."],
      Merge: () => [
        `Each of the ${k} tokens joins its partner. `,
        "The new token is the mean of its members and counts for all of them.",
      ],
      Result: () => [
        `${new Set(solved.slots).size} tokens are left. Merged: `,
        [solved.groups.join(", ")],
        `.${state.shuffled ? compared : ""}`,
      ],
    }[step]();
  }

  Live.figure("one-merge", function (box, data) {
    const next = shuffler(data.keys.length);
    const state = { method: "PiToMe", order: data.keys.map((_, i) => i), step: 0, shuffled: false };
    const squares = data.colours.map(function (_, i) {
      const rect = svg("rect", { width: SIDE, height: SIDE, rx: 5 }),
        number = svg("text", { x: SIDE / 2, y: SIDE / 2 + 5 });
      const under = svg("text", { x: SIDE / 2, y: SIDE + 12, class: "live-under" });
      number.textContent = String(i);
      return { rect, number, under, group: svg("g", { class: "live-square" }, rect, number, under) };
    });
    const lines = svg("g", {}),
      letters = svg("g", {});
    const drawing = svg(
      "svg",
      { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", class: "live-scene" },
      letters,
      svg("g", {}, ...squares.map((s) => s.group)),
      lines,
    );
    const title = html("p", { class: "live-title" }),
      reading = Live.reading();
    const method = Live.choice("Method", ["PiToMe", "ToMe"], 0, function (i) {
      const last = STEPS[state.method].length - 1;
      const at = state.step;
      state.method = i ? "ToMe" : "PiToMe";
      state.step = at === last ? STEPS[state.method].length - 1 : Math.min(at, 1);
      draw();
    });
    const back = Live.button("Back", () => move(-1)),
      forward = Live.button("Next", () => move(1));
    const shuffle = Live.button("Shuffle tokens", function () {
      state.order = next();
      state.shuffled = true;
      draw();
    });

    function move(by) {
      state.step = Math.min(Math.max(state.step + by, 0), STEPS[state.method].length - 1);
      draw();
    }
    function drawLines(at, solved, step) {
      const down = (p, bottom) => [at[p][0] + SIDE / 2, at[p][1] + (bottom ? SIDE : 0)];
      lines.replaceChildren(
        ...links(state, solved.plan, step).map(function ([a, b, faint]) {
          const [x1, y1] = down(a, true),
            [x2, y2] = down(b, false),
            middle = (y1 + y2) / 2;
          return svg("path", {
            class: faint ? "live-link live-faint" : "live-link",
            d: `M${x1} ${y1}C${x1} ${middle} ${x2} ${middle} ${x2} ${y2}`,
          });
        }),
      );
      const note = (text, x, y) => svg("text", { x, y }, text);
      letters.replaceChildren();
      const gated = state.method === "PiToMe" && ["Gate", "Match", "Merge"].includes(step);
      if (gated) {
        letters.append(
          note("A", 6, 14),
          note("B", 6, 98),
          note("protected", 6, 177),
          svg("line", { class: "live-cut", x1: 0, x2: WIDE, y1: 161, y2: 161 }),
        );
      }
      if (state.method === "ToMe" && ["Split", "Match", "Choice", "Merge"].includes(step))
        letters.append(note("A", 6, 32), note("B", 6, 202));
      if (step === "Order") letters.append(note("1st to 8th", 6, 32), note("9th to 16th", 6, 132));
    }
    function draw() {
      const steps = STEPS[state.method],
        step = steps[state.step],
        solved = solve(data, state.method, state.order);
      const at = layout(state, solved, step),
        joined = step === "Merge" || step === "Result";
      const sources = new Set(solved.plan.a);
      const aside =
        state.method === "PiToMe" && ["Gate", "Match", "Merge"].includes(step)
          ? new Set(solved.plan.order.slice(2 * data.remove))
          : new Set();
      state.order.forEach(function (i, place) {
        const { rect, number, under, group } = squares[i],
          colour = joined ? solved.mean[place] : data.colours[i];
        group.style.transform = `translate(${at[place][0]}px, ${at[place][1]}px)`;
        rect.setAttribute("fill", css(colour));
        number.setAttribute("class", dark(colour) ? "live-on-dark" : "");
        group.setAttribute(
          "class",
          [
            "live-square",
            joined && solved.size[place] > 1 ? "live-of-several" : "",
            aside.has(place) ? "live-aside" : "",
          ].join(" "),
        );
        group.style.opacity = step === "Merge" && sources.has(place) ? 0 : "";
        under.textContent =
          solved.plan.energy && ["Energy", "Order"].includes(step)
            ? Live.decimal(solved.plan.energy[place], 3)
            : step === "Merge" && solved.size[place] > 1 && !sources.has(place)
              ? `size ${solved.size[place]}`
              : "";
        if (step === "Result" && solved.size[place] > 1) {
          const root = solved.slots.findIndex((slot, p) => slot === solved.slots[place] && !sources.has(p));
          number.textContent = String(state.order[root]);
        } else number.textContent = String(i);
      });
      drawLines(at, solved, step);
      back.disabled = state.step === 0;
      forward.disabled = state.step === steps.length - 1;
      title.textContent = `${state.method}, step ${state.step + 1} of ${steps.length}: ${step.toLowerCase()}`;
      const said = words(state, solved, step, data);
      drawing.setAttribute("aria-label", `${title.textContent}. ${said.flat().join("")}`);
      Live.say(reading, ...said);
    }

    box.append(
      html(
        "div",
        { class: "live-controls" },
        method.element,
        shuffle,
        html("div", { class: "live-steps" }, back, forward),
      ),
      title,
      drawing,
      reading,
    );
    draw();
  });
})();
