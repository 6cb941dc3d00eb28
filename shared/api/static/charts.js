// The two charts, drawn by uPlot in the colours of page.css.

const HEIGHT = 220;
const FONT = "12px system-ui, sans-serif";

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const axis = (more) => ({
  stroke: () => colour("--muted"),
  font: FONT,
  grid: { stroke: () => colour("--line"), width: 1 },
  ticks: { show: false },
  ...more,
});

/** A chart in `box` that follows its width and the browser's colours; `says` what is pointed at. */
function chart(box, says, options, data) {
  const size = () => ({ width: Math.max(200, box.clientWidth), height: HEIGHT });
  const readout = document.createElement("p");
  readout.className = "readout";
  readout.setAttribute("aria-hidden", "true");
  const plot = new uPlot(
    {
      ...size(),
      legend: { show: false },
      padding: [12, 26, 0, 0],
      cursor: { y: false, drag: { x: false, y: false }, points: { show: false } },
      ...options,
      hooks: {
        ...options.hooks,
        setCursor: [
          ({ cursor: { idx } }) => {
            readout.textContent = idx == null ? "" : says(idx);
          },
        ],
      },
    },
    data,
    box,
  );
  box.append(readout);
  new ResizeObserver(() => box.clientWidth !== plot.width && plot.setSize(size())).observe(box);
  const redraw = () => plot.redraw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  matchMedia("print").addEventListener("change", redraw);
  return plot;
}

const labels = (_, values) =>
  values.map((n) => (n >= 1e6 ? `${n / 1e6}M` : n >= 1e4 ? `${n / 1e3}k` : String(n)));

/** Nonces per second over time; `says` what is at a place of its data. */
export function rateChart(box, says) {
  const twoDigits = (n) => String(n).padStart(2, "0");
  return chart(
    box,
    says,
    {
      scales: { x: { time: true }, y: { range: (_, low, high) => [0, Math.max(1, high * 1.15)] } },
      axes: [
        axis({
          size: 28,
          space: 70,
          values: (_, ticks) =>
            ticks.map((t) => {
              const at = new Date(t * 1000);
              const minute = `${twoDigits(at.getHours())}:${twoDigits(at.getMinutes())}`;
              return at.getSeconds() ? `${minute}:${twoDigits(at.getSeconds())}` : minute;
            }),
        }),
        axis({ size: 48, values: labels }),
      ],
      series: [
        {},
        {
          stroke: () => colour("--accent"),
          fill: () => colour("--accent-soft"),
          width: 2,
          points: { show: false },
        },
      ],
    },
    [[], []],
  );
}

/** How many nonces lie at which distance; `target` of what it gives is where a line is drawn. */
export function distanceChart(box, says) {
  const bars = uPlot.paths.bars({ size: [0.86, 40], radius: 0.15 });
  const series = (name) => ({
    paths: bars,
    fill: () => colour(name),
    stroke: "transparent",
    width: 0,
    points: { show: false },
  });
  const line = (plot) => {
    const x = plot.valToPos(plot.target ?? NaN, "x", true);
    if (!Number.isFinite(x)) return;
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = colour("--text");
    ctx.lineWidth = 1.5 * devicePixelRatio;
    ctx.setLineDash([5 * devicePixelRatio, 4 * devicePixelRatio]);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    ctx.restore();
  };
  return chart(
    box,
    says,
    {
      scales: {
        x: { time: false },
        y: { range: (_, low, high) => [0, Math.max(1, high * 1.1)] },
      },
      axes: [axis({ size: 28, space: 60 }), axis({ size: 48, values: labels })],
      series: [{}, series("--accent"), series("--bar")],
      hooks: { draw: [line] },
    },
    [[], [], []],
  );
}
