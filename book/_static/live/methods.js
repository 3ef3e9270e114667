/* The computations behind the interactive figures: those of pitome_core, on plain arrays of doubles. The tests compare
   the two. Nothing here touches a page, so that it runs in node too. */
(function () {
  "use strict";

  /** Cosines of all pairs of tokens: N rows of C numbers -> N rows of N. A zero vector has cosine 0 with all. */
  function cosines(tokens) {
    const unit = tokens.map(function (token) {
      const length = Math.hypot(...token);
      return token.map((x) => (length > 0 ? x / length : 0));
    });
    return unit.map((a) => unit.map((b) => a.reduce((sum, x, i) => sum + x * b[i], 0)));
  }

  /** Energy of every token from its cosines (eq. 4): x at and above the margin, exp(x - m) - 1 below it. */
  function energies(cos, margin) {
    return cos.map((row) => row.reduce((sum, x) => sum + (x >= margin ? x : Math.exp(x - margin) - 1), 0) / row.length);
  }

  /** Indices by value, the largest first; of equal values the earlier one first. */
  function descending(values) {
    return values.map((_, i) => i).sort((i, j) => values[j] - values[i] || i - j);
  }

  /** The column of the largest entry among `columns`; of equal ones the first. */
  function best(row, columns) {
    return columns.reduce((found, c) => (row[c] > row[found] ? c : found), columns[0]);
  }

  /** One merge of `remove` tokens by PiToMe: energies, their order, A and B, the partner of each token of A. */
  function pitome(cos, remove, margin) {
    const energy = energies(cos, margin),
      order = descending(energy),
      candidates = order.slice(0, 2 * remove);
    const a = candidates.filter((_, rank) => rank % 2 === 0),
      b = candidates.filter((_, rank) => rank % 2 === 1);
    return { energy, order, a, b, partner: a.map((i) => best(cos[i], b)) };
  }

  /** The same by ToMe: all even places are A, all odd ones B; the `remove` most similar pairs merge (`merged`). */
  function tome(cos, remove) {
    const places = cos.map((_, i) => i);
    const even = places.filter((i) => i % 2 === 0),
      odd = places.filter((i) => i % 2 === 1);
    const wish = even.map((i) => best(cos[i], odd)),
      alike = even.map((i, n) => cos[i][wish[n]]);
    const merged = descending(alike).slice(0, remove);
    return { even, odd, wish, alike, a: merged.map((n) => even[n]), partner: merged.map((n) => wish[n]) };
  }

  /** Slot of every token when each of `a` joins its partner; slots stand in the order of the tokens that stay. */
  function assignment(count, a, partner) {
    const root = Array.from({ length: count }, (_, i) => i);
    a.forEach((i, n) => {
      root[i] = partner[n];
    });
    const kept = root.filter((r, i) => r === i);
    return root.map((r) => kept.indexOf(r));
  }

  /** Plans one after another: where every patch is after the first `layers` of them. */
  function compose(plans, count, layers) {
    let at = Array.from({ length: count }, (_, i) => i);
    for (const plan of plans.slice(0, layers)) at = at.map((slot) => plan[slot]);
    return at;
  }

  /** The patches of `inside` whose token holds a patch of `outside` too. */
  function mixed(at, inside, outside) {
    const touched = new Set(outside.map((patch) => at[patch]));
    return inside.filter((patch) => touched.has(at[patch]));
  }

  /** Weights of the token graph, 1 - cos, with a zero diagonal (eq. 3). */
  function tokenGraph(tokens) {
    return cosines(tokens).map((row, i) => row.map((x, j) => (i === j ? 0 : Math.max(1 - x, 0))));
  }

  /** The lifted coarse graph: every weight becomes the mean over the pairs of its two groups. */
  function lifted(weights, groups) {
    const count = Math.max(...groups) + 1;
    const sum = Array.from({ length: count }, () => new Array(count).fill(0)),
      size = new Array(count).fill(0);
    groups.forEach((g, i) => {
      size[g] += 1;
      groups.forEach((h, j) => {
        sum[g][h] += weights[i][j];
      });
    });
    return groups.map((g) => groups.map((h) => sum[g][h] / (size[g] * size[h])));
  }

  /** I - D^-1/2 W D^-1/2; a vertex of degree 0 has D^-1/2 = 0. */
  function laplacian(weights) {
    const scale = weights.map((row) => row.reduce((a, b) => a + b, 0)).map((d) => (d > 0 ? 1 / Math.sqrt(d) : 0));
    return weights.map((row, i) => row.map((w, j) => (i === j ? 1 : 0) - scale[i] * w * scale[j]));
  }

  /** Eigenvalues of a symmetric matrix, ascending, by Jacobi's rotations. */
  function eigenvalues(matrix) {
    const m = matrix.map((row) => row.slice()),
      n = m.length;
    for (let sweep = 0; sweep < 60; sweep++) {
      let rest = 0;
      for (let p = 0; p < n; p++) for (let q = 0; q < p; q++) rest += m[p][q] ** 2;
      if (rest < 1e-26) break;
      for (let p = 0; p < n; p++) for (let q = p + 1; q < n; q++) rotate(m, p, q);
    }
    return m.map((row, i) => row[i]).sort((a, b) => a - b);
  }

  /** One rotation, in place, after which entry (p, q) is 0. */
  function rotate(m, p, q) {
    if (m[p][q] === 0) return;
    const theta = (m[q][q] - m[p][p]) / (2 * m[p][q]);
    const t = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.hypot(theta, 1)),
      c = 1 / Math.hypot(t, 1),
      s = t * c;
    for (let i = 0; i < m.length; i++) [m[i][p], m[i][q]] = [c * m[i][p] - s * m[i][q], s * m[i][p] + c * m[i][q]];
    for (let i = 0; i < m.length; i++) [m[p][i], m[q][i]] = [c * m[p][i] - s * m[q][i], s * m[p][i] + c * m[q][i]];
  }

  /** The share of each group's degrees that lies inside it; on token graphs they sum to the spectral distance. */
  function shares(weights, groups) {
    return Array.from({ length: Math.max(...groups) + 1 }, function (_, g) {
      let inside = 0,
        all = 0;
      groups.forEach((h, i) => {
        if (h !== g) return;
        weights[i].forEach((w, j) => {
          all += w;
          if (groups[j] === g) inside += w;
        });
      });
      return all > 0 ? inside / all : 0;
    });
  }

  /** Spectra before and after, their distance (eq. 5), and the shares of the groups. */
  function spectral(weights, groups) {
    const before = eigenvalues(laplacian(weights)),
      after = eigenvalues(laplacian(lifted(weights, groups)));
    const distance = before.reduce((sum, x, i) => sum + Math.abs(x - after[i]), 0);
    return { before, after, shares: shares(weights, groups), distance };
  }

  /** Tokens in clusters of `sizes`: unit centres, any two at that cosine, plus `noise` times a row of `unit`. They stand
      in blocks; shuffled, where place p has token `places[p]`; or adversarial, with the first cluster on even places. */
  function clustered(unit, sizes, cosine, noise, order, places) {
    const labels = sizes.flatMap((size, c) => new Array(size).fill(c));
    const tokens = unit.map(function (row, i) {
      const centre = (j) => (j === labels[i] ? Math.sqrt(1 - cosine) : j === sizes.length ? Math.sqrt(cosine) : 0);
      return row.map((x, j) => centre(j) + noise * x);
    });
    let at = labels.map((_, i) => i); // which token stands at each place
    if (order === "shuffled") at = places;
    if (order === "adversarial") {
      const even = labels.map((_, place) => place % 2 === 0 && place < 2 * sizes[0]);
      let first = 0,
        other = sizes[0];
      at = even.map((yes) => (yes ? first++ : other++));
    }
    return { tokens: at.map((i) => tokens[i]), labels: at.map((i) => labels[i]) };
  }

  const methods = {
    cosines,
    energies,
    descending,
    pitome,
    tome,
    assignment,
    compose,
    mixed,
    tokenGraph,
    shares,
    spectral,
    clustered,
  };
  if (typeof module === "object") module.exports = methods;
  else window.LiveMethods = methods;
})();
