"use strict";
// Draws charts as SVG. Chart in plot.go says what a chart is.

const drawPlot = (() => {
	const width = 640, height = 330;
	const frame = { left: 58, right: width - 14, top: 8, bottom: height - 44 };

	// make returns a new element of SVG with its attributes, inside parent.
	function make(parent, name, attributes, text) {
		const e = document.createElementNS("http://www.w3.org/2000/svg", name);
		for (const [key, value] of Object.entries(attributes)) e.setAttribute(key, value);
		if (text !== undefined) e.textContent = text;
		parent.append(e);
		return e;
	}

	const format = v => v === 0 ? "0" : String(Number(v.toPrecision(3)));

	// linearTicks returns some 5 multiples of 1, 2 or 5 times a power of ten.
	function linearTicks(min, max) {
		const rough = (max - min) / 5, power = 10 ** Math.floor(Math.log10(rough));
		const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= rough * 0.999);
		const ticks = [];
		for (let i = Math.ceil(min / step); i * step <= max * 1.0001; i++) ticks.push(i * step);
		return ticks.map(value => ({ value, label: format(value) }));
	}

	// logTicks returns the powers of ten, and where these are few also 2 and 5 times each.
	function logTicks(min, max) {
		const factors = max / min < 2000 ? [1, 2, 5] : [1], ticks = [];
		for (let p = Math.floor(Math.log10(min)); p <= Math.ceil(Math.log10(max)); p++) {
			for (const f of factors) {
				const value = Number(`${f}e${p}`);
				if (value >= min * 0.999 && value <= max * 1.001) ticks.push({ value, label: format(value) });
			}
		}
		return ticks;
	}

	// scale maps the values of an axis to pixels between from and to.
	function scale(axis, values, from, to) {
		let min = Math.min(...values), max = Math.max(...values);
		if (axis.log) {
			min = Math.min(min, max / 1.5);
		} else {
			min = Math.min(min, 0);
			if (max === min) max = min + 1;
		}
		const at = axis.log ? Math.log : v => v;
		return {
			place: v => from + (at(v) - at(min)) / (at(max) - at(min)) * (to - from),
			ticks: axis.ticks ? axis.ticks.filter(t => t.value >= min * 0.999 && t.value <= max * 1.001) : axis.log ? logTicks(min, max) : linearTicks(min, max),
		};
	}

	// headroom is the points' y values and one a little above them, so that no line touches the frame.
	const headroom = (ys, log) => [...ys, Math.max(...ys) * (log ? 1.3 : 1.08)];

	function drawAxes(svg, chart, x, y) {
		for (const t of y.ticks) {
			make(svg, "line", { class: "grid", x1: frame.left, x2: frame.right, y1: y.place(t.value), y2: y.place(t.value) });
			make(svg, "text", { x: frame.left - 6, y: y.place(t.value) + 4, "text-anchor": "end" }, t.label);
		}
		for (const t of x.ticks) {
			if (!x.bare) make(svg, "line", { class: "grid", x1: x.place(t.value), x2: x.place(t.value), y1: frame.top, y2: frame.bottom });
			make(svg, "text", { x: x.place(t.value), y: frame.bottom + 16, "text-anchor": "middle" }, t.label);
		}
		make(svg, "path", { class: "axis", fill: "none", d: `M${frame.left},${frame.top}V${frame.bottom}H${frame.right}` });
		make(svg, "text", { x: (frame.left + frame.right) / 2, y: height - 8, "text-anchor": "middle" }, chart.x.label);
		const middle = (frame.top + frame.bottom) / 2;
		make(svg, "text", { x: 14, y: middle, "text-anchor": "middle", transform: `rotate(-90 14 ${middle})` }, chart.y.label);
	}

	// drawLines draws each series as a line. The pointer's place is read out in the legend.
	function drawLines(svg, chart, labels) {
		const series = chart.series.map(s => s.points.filter(p => !(chart.x.log && p[0] <= 0 || chart.y.log && p[1] <= 0)));
		const all = series.flat();
		const x = scale(chart.x, all.map(p => p[0]), frame.left, frame.right);
		const y = scale(chart.y, headroom(all.map(p => p[1]), chart.y.log), frame.bottom, frame.top);
		drawAxes(svg, chart, x, y);
		series.forEach((points, i) => {
			const d = points.map(([px, py], j) => {
				if (j === 0) return `M${x.place(px)},${y.place(py)}`;
				return chart.kind === "steps" ? `H${x.place(px)}V${y.place(py)}` : `L${x.place(px)},${y.place(py)}`;
			});
			const s = chart.series[i];
			make(svg, "path", { class: "line", stroke: s.color, "stroke-width": s.strong ? 3 : 1.6, d: d.join("") });
		});

		const cursor = make(svg, "path", { class: "cursor", d: "" });
		svg.addEventListener("pointermove", event => {
			const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).x;
			if (at < frame.left || at > frame.right) return;
			cursor.setAttribute("d", `M${at},${frame.top}V${frame.bottom}`);
			series.forEach((points, i) => {
				let best = null;
				for (const p of points) if (best === null || Math.abs(x.place(p[0]) - at) < Math.abs(x.place(best[0]) - at)) best = p;
				labels[i].textContent = chart.series[i].name + (best ? " " + format(best[1]) : "");
			});
		});
		svg.addEventListener("pointerleave", () => {
			cursor.setAttribute("d", "");
			labels.forEach((label, i) => { label.textContent = chart.series[i].name; });
		});
	}

	// drawBars draws a group of bars for each of chart.groups. Each bar names itself and its value.
	function drawBars(svg, chart) {
		const group = (frame.right - frame.left) / chart.groups.length, bar = group * 0.8 / chart.series.length;
		const y = scale(chart.y, headroom(chart.series.flatMap(s => s.points.map(p => p[1]))), frame.bottom, frame.top);
		const x = {
			place: i => frame.left + (i + 0.5) * group, bare: true,
			ticks: chart.groups.map((label, value) => ({ value, label })),
		};
		drawAxes(svg, chart, x, y);
		chart.series.forEach((s, i) => {
			for (const [g, v] of s.points) {
				const left = x.place(g) + (i - chart.series.length / 2) * bar;
				const e = make(svg, "rect", {
					x: left, y: y.place(v), width: Math.max(bar - 1, 1), height: Math.max(frame.bottom - y.place(v), 0), fill: s.color,
				});
				make(e, "title", {}, `${s.name}, ${chart.x.label} ${chart.groups[g]}: ${format(v)}`);
			}
		});
	}

	return (element, chart) => {
		element.replaceChildren();
		element.classList.add("plot");
		const legend = document.createElement("div"), labels = [];
		legend.className = "legend";
		for (const s of chart.series) {
			const item = document.createElement("span"), label = document.createElement("span");
			const swatch = make(item, "svg", { viewBox: "0 0 14 10", "aria-hidden": "true" });
			make(swatch, "rect", { width: 14, height: 10, rx: 2, fill: s.color });
			label.textContent = s.name;
			item.append(label);
			legend.append(item);
			labels.push(label);
		}
		element.append(legend);
		const svg = make(element, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": chart.title });
		if (chart.kind === "bars") drawBars(svg, chart); else drawLines(svg, chart, labels);
	};
})();

for (const element of document.querySelectorAll("[data-plot]")) drawPlot(element, JSON.parse(element.dataset.plot));
