// A minute of three numbers, drawn small: frames a second, time to make a block, press to picture.

const SAMPLES = 120; // one every half second
const COLORS = { fps: "#8fd18b", made: "#7fb4ff", press: "#ffc65c" };

export class Graph {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.rows = { fps: [], made: [], press: [] };
  }

  add(values) {
    for (const name in this.rows) {
      const row = this.rows[name];
      row.push(values[name] ?? null);
      if (row.length > SAMPLES) row.shift();
    }
  }

  draw(native) {
    const ratio = devicePixelRatio;
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    if (!width) return;
    if (this.canvas.width !== Math.round(width * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
    }
    const context = this.context;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const tall = height / 3;
    const tops = { fps: native * 1.15, made: this.top("made", 50), press: this.top("press", 100) };
    Object.keys(this.rows).forEach((name, number) => {
      const base = tall * (number + 1) - 3;
      context.strokeStyle = "rgba(255,255,255,.09)";
      context.lineWidth = 1;
      context.beginPath();
      context.moveTo(0, base + 0.5);
      context.lineTo(width, base + 0.5);
      context.stroke();
      context.strokeStyle = COLORS[name];
      context.lineWidth = 1.5;
      context.lineJoin = "round";
      context.beginPath();
      let pen = false;
      const row = this.rows[name];
      row.forEach((value, index) => {
        if (value === null) return;
        const x = width - ((row.length - 1 - index) * width) / (SAMPLES - 1);
        const y = base - Math.min(1, value / tops[name]) * (tall - 8);
        pen ? context.lineTo(x, y) : context.moveTo(x, y);
        pen = true;
      });
      context.stroke();
    });
  }

  top(name, least) {
    return Math.max(least, ...this.rows[name].map((value) => (value ?? 0) * 1.2));
  }
}
