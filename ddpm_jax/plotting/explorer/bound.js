// Section 5: the terms of the variational bound over t, and the error of the predicted noise.

function setUpBound(page) {
  const { bound, numTimesteps, rows } = page;
  const given = rows.kind && `, each with its ${rows.kind}`;
  const positive = bound.bits.filter((value) => value > 0);
  const range = [10 ** Math.floor(Math.log10(Math.min(...positive))), 10 ** Math.ceil(Math.log10(Math.max(...positive)))];
  const axes = { x: [0, numTimesteps - 1], xLabel: "t", onPoint: (t) => slider.set(t) };
  const terms = new Chart(find("bound-chart"), { ...axes, label: "", y: range, log: true, height: 240 });
  const errors = new Chart(find("error-chart"), { ...axes, label: "", y: [0, Math.max(1, ...bound.epsMse)], height: 240 });
  const lines = (y, name) => [{ x: bound.t, y, class: name }];
  find("bound-t").max = String(numTimesteps - 1);
  find("bound-t").value = String(Math.round(numTimesteps * 0.1));

  const slider = bindSlider(find("bound-t"), find("bound-t-value"), (value) => {
    let at = 0;
    bound.t.forEach((t, i) => {
      if (Math.abs(t - value) < Math.abs(bound.t[at] - value)) at = i;
    });
    const t = bound.t[at];
    const [bits, error] = [formatNumber(bound.bits[at]), formatNumber(bound.epsMse[at])];
    const text = `At t = ${t} the term has ${bits} bits per dimension, and the predicted noise an error of ${error}`;
    const total = bound.total === null ? "" : `, and the whole bound ${formatNumber(bound.total)}`;
    find("bound-state").textContent =
      `${text}. The term at T has ${formatNumber(bound.prior)} bits${total}. Means of ${bound.count} images of the split ${bound.split}${given}.`;
    terms.update({ content: lines(bound.bits, "signal"), marker: t, label: text });
    errors.update({ content: lines(bound.epsMse, "noise"), marker: t, label: text });
  });
  slider.update();
}
