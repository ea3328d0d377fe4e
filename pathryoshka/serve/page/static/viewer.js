// The slide: OpenSeadragon over the service's pyramid, the square that was taken, and the heat map of a tile.

import * as api from "./api.js";
import { range, viridis } from "./colours.js";

const HEAT_PIXELS = 1024;  // of the longer side; tiles are squares of it, so more would show nothing more

export class Viewer {
  /** `taken(x, y)` is called with pixels of level 0. */
  constructor(element, taken) {
    this.taken = taken;
    this.osd = new OpenSeadragon.Viewer({
      element, showNavigationControl: false, loadTilesWithAjax: true, ajaxHeaders: api.headers(), drawer: "canvas",
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true }, gestureSettingsTouch: { clickToZoom: false },
      animationTime: matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 0.5,
    });
    this.osd.canvas.removeAttribute("tabindex");  // the element around it has the keyboard
    this.osd.addHandler("canvas-click", (event) => { if (event.quick) this.take(this.osd.viewport.pointFromPixel(event.position)); });
    element.addEventListener("keydown", (event) => this.key(event));
  }

  open(slide) {
    this.slide = slide;
    this.heat = null;
    this.osd.open({
      width: slide.width, height: slide.height, tileSize: 254, tileOverlap: 1,
      getTileUrl: (level, x, y) => api.tileUrl(slide.slide_id, level, x, y),
    });
  }

  zoom(factor) { this.osd.viewport.zoomBy(factor); this.osd.viewport.applyConstraints(); }
  whole() { this.osd.viewport.goHome(); }
  takeMiddle() { this.take(this.osd.viewport.getCenter()); }

  take(point) {
    const pixel = this.osd.viewport.viewportToImageCoordinates(point);
    if (pixel.x >= 0 && pixel.y >= 0 && pixel.x <= this.slide.width && pixel.y <= this.slide.height) this.taken(pixel.x, pixel.y);
  }

  key(event) {
    const step = 0.1 / this.osd.viewport.getZoom();
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (event.key in moves) {
      this.osd.viewport.panBy(new OpenSeadragon.Point(...moves[event.key]));
      this.osd.viewport.applyConstraints();
    } else if (event.key === "+" || event.key === "=") this.zoom(1.4);
    else if (event.key === "-") this.zoom(1 / 1.4);
    else if (event.key === "Home") this.whole();
    else if (event.key === "Enter") this.takeMiddle();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  mark(x, y, side) {
    if (this.square) this.osd.removeOverlay(this.square);
    this.square = Object.assign(document.createElement("div"), { className: "picked" });
    this.osd.addOverlay({ element: this.square, location: this.osd.viewport.imageToViewportRectangle(x - side / 2, y - side / 2, side, side) });
  }

  /** Draws cosines over tiles [left, top, side]; returns what is the darkest and what the brightest. */
  drawHeat(tiles, cosines) {
    const { width, height } = this.slide;
    const scale = HEAT_PIXELS / Math.max(width, height);
    if (!this.heat) {
      this.heat = Object.assign(document.createElement("canvas"), { className: "heat", width: width * scale, height: height * scale });
      this.osd.addOverlay({ element: this.heat, location: new OpenSeadragon.Rect(0, 0, 1, height / width) });
    }
    const draw = this.heat.getContext("2d");
    const [low, high] = range(cosines);
    draw.clearRect(0, 0, this.heat.width, this.heat.height);
    tiles.forEach(([left, top, side], i) => {
      draw.fillStyle = viridis((cosines[i] - low) / (high - low));
      draw.fillRect(left * scale, top * scale, Math.max(1, side * scale), Math.max(1, side * scale));
    });
    return [low, high];
  }

  removeHeat() {
    if (this.heat) this.osd.removeOverlay(this.heat);
    this.heat = null;
  }
}
