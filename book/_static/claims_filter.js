/* The table of all claims, filtered: buttons for verdicts and kinds, a field for words, and how many rows are shown.

   Without this script the whole table is shown. Nothing is fetched, so that it works from file://. */
(function () {
  "use strict";

  const { html } = Live, // of live/core.js, which comes before
    ALL = "all";

  /** A row of buttons of which one is pressed; `change()` is called when that is another one. */
  function buttons(legend, values, counts, change) {
    let chosen = ALL;
    const made = [ALL, ...values].map(function (value) {
      const button = html("button", { type: "button" }, `${value} (${counts(value)})`);
      button.addEventListener("click", function () {
        chosen = value;
        show();
        change();
      });
      return button;
    });
    function show() {
      made.forEach((button, i) => button.setAttribute("aria-pressed", [ALL, ...values][i] === chosen));
    }
    show();
    return {
      row: html("div", { role: "group", "aria-label": legend }, html("span", {}, legend), ...made),
      fits: (value) => chosen === ALL || chosen === value,
    };
  }

  function add(table) {
    const rows = Array.from(table.tBodies[0].rows);
    const texts = rows.map((row) => row.textContent.toLowerCase());
    const reading = html("p", { role: "status", class: "claims-shown" });
    const words = html("input", { type: "search", id: "claims-words", autocomplete: "off" });
    const filters = ["verdict", "kind"].map(function (name) {
      const of = rows.map((row) => row.dataset[name]);
      const count = (value) => (value === ALL ? rows.length : of.filter((one) => one === value).length);
      return { of, buttons: buttons(name, [...new Set(of)], count, filter) };
    });

    /** Show the rows that fit the buttons and have every word of the field. */
    function filter() {
      const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach(function (row, i) {
        const fits = filters.every((one) => one.buttons.fits(one.of[i])) && wanted.every((w) => texts[i].includes(w));
        row.hidden = !fits;
        shown += fits;
      });
      reading.textContent = `${shown} of ${rows.length} claims shown`;
    }
    words.addEventListener("input", filter);

    const field = html("div", {}, html("label", { for: words.id }, "words"), words);
    table.before(html("div", { class: "claims-filter" }, ...filters.map((one) => one.buttons.row), field, reading));
    filter();
  }

  document.querySelectorAll("table.claims-table").forEach(add);
})();
