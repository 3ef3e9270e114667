/* A picture with points: the point next to the pointer, or chosen with the arrow keys, is ringed and said in words. A point
   may stand in several panels of the picture; places are in percent of its width and height. */
(function () {
  "use strict";

  /** The point next to a place, `wide` and `high` being the size of the picture in pixels. */
  function nearest(points, x, y, wide, high) {
    const far = (place) => Math.hypot(((place[0] - x) * wide) / 100, ((place[1] - y) * high) / 100);
    const least = points.map((point) => Math.min(...point.places.map(far)));
    return least.indexOf(Math.min(...least));
  }

  if (typeof module === "object") {
    module.exports = { nearest };
    return;
  }
  const { html, svg } = Live;

  Live.figure("points", function (box, data, whole) {
    const picture = whole.querySelector("img").cloneNode(), // a plot, whose paper is dark in dark mode
      rings = svg("svg", { class: "live-rings", "aria-hidden": "true" }),
      reading = Live.reading();
    const map = html(
      "div",
      {
        class: "live-picker live-plate",
        tabindex: 0,
        role: "application",
        "aria-roledescription": "picture with points",
        "aria-label": `${data.what}. Arrow keys choose a point.`,
      },
      picture,
      rings,
    );
    picture.classList.add("plot");
    let at = data.start;

    function choose(index) {
      at = Math.min(Math.max(index, 0), data.points.length - 1);
      const { places, says } = data.points[at];
      rings.replaceChildren(...places.map(([x, y]) => svg("circle", { cx: `${x}%`, cy: `${y}%`, r: 9 })));
      Live.say(reading, [says[0]], says[1]);
    }

    map.addEventListener("pointermove", function (event) {
      const { left, top, width, height } = map.getBoundingClientRect();
      const x = (100 * (event.clientX - left)) / width,
        y = (100 * (event.clientY - top)) / height;
      choose(nearest(data.points, x, y, width, height));
    });
    map.addEventListener("keydown", function (event) {
      const step = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      choose(at + step);
    });
    box.append(html("div", { class: "live-wide" }, map), reading);
    choose(at);
  });
})();
