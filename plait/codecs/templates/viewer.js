// Shows things in three dimensions: each .plait-3d holds a still image, which becomes a view that one can turn.
//
// One WebGL renderer draws all views, each into a canvas of its own, because browsers allow a page few contexts. Only
// views on the screen are there, and they are drawn when they change. The data are as plait/codecs/viewer.py writes
// them: x is to the right, y away from the viewer, z up; the cube of a scene has side 1.

(() => {
  const STYLE = `
    .plait-3d { position: relative; width: 320px; max-width: 100%; }
    .plait-3d > img, .plait-3d > svg { display: block; width: 100%; height: auto; box-shadow: none; }
    .plait-3d > canvas { display: block; width: 100%; aspect-ratio: 1; cursor: grab; border-radius: 6px;
      touch-action: pan-y pinch-zoom; user-select: none; -webkit-user-select: none; }
    .plait-3d > canvas:active { cursor: grabbing; }
    .plait-3d > [hidden] { display: none; }
    .plait-3d > .bar { display: flex; align-items: center; gap: 10px; padding: 2px 4px 0; }
    .plait-3d > .bar button { flex: none; width: 30px; height: 30px; padding: 0; border: 1px solid; border-radius: 50%;
      color: inherit; background: none; opacity: .75; cursor: pointer; }
    .plait-3d > .bar button:hover { opacity: 1; }
    .plait-3d > .bar button::before { content: ""; display: block; margin: auto; width: 9px; height: 10px;
      background: currentColor; clip-path: polygon(10% 0, 100% 50%, 10% 100%); }
    .plait-3d.playing > .bar button::before {
      clip-path: polygon(0 0, 35% 0, 35% 100%, 65% 100%, 65% 0, 100% 0, 100% 100%, 0 100%); }
    .plait-3d > .bar input { flex: 1; min-width: 0; width: auto; margin: 0; padding: 0; border: 0; background: none;
      accent-color: currentColor; opacity: .75; cursor: pointer; }`;
  const TURN = 28, TILT = 24, LOWEST = 2, HIGHEST = 86;  // degrees
  const WIDE = 1.6, MIDDLE = 0.38;  // what a view shows, in sides of the cube, and the height of its middle
  const FIELD = 24, IDLE = 14, PAUSE = 0.8;  // degrees, degrees per second, seconds at a motion's end
  const SLOW = 0.05, LEAST_IDLE = 150;  // seconds between frames, pixels: views turn by themselves only above
  const SHADES = [0.5, 0.66, 0.83, 1];  // light in a corner that has 3, 2, 1 and no neighbours
  const BLACK = 0.014;  // light of a black cell, so that its faces differ
  const LINEAR = Float32Array.from({length: 256}, (_, i) =>
    Math.max(BLACK, new THREE.Color(i / 255, 0, 0).convertSRGBToLinear().r));
  const rad = THREE.MathUtils.degToRad, clamp = THREE.MathUtils.clamp;
  const calm = matchMedia("(prefers-reduced-motion: reduce)");

  const bytesOf = (text) => Uint8Array.from(atob(text || ""), (c) => c.charCodeAt(0));

  // -- the renderer, which all views share --------------------------------------------------------------------------

  class Stage {
    constructor() {
      this.renderer = new THREE.WebGLRenderer({antialias: true, alpha: true});
      this.renderer.outputEncoding = THREE.sRGBEncoding;
      this.renderer.shadowMap.enabled = true;
      this.renderer.shadowMap.type = THREE.PCFSoftShadowMap;
      this.size = 0;
      this.scene = new THREE.Scene();
      this.camera = new THREE.PerspectiveCamera(FIELD, 1, 0.1, 60);
      this.camera.up.set(0, 0, 1);
      this.sun = new THREE.DirectionalLight(0xffffff, 0.78);
      this.sun.castShadow = true;
      this.sun.shadow.mapSize.set(1024, 1024);
      this.sun.shadow.normalBias = 0.015;
      const sky = new THREE.HemisphereLight(0xffffff, 0xb9b2a6, 0.52);
      sky.position.set(0, 0, 1);
      const disc = new THREE.CircleGeometry(1, 96);
      const clear = {transparent: true, depthWrite: false};
      this.floor = new THREE.Mesh(disc, new THREE.MeshBasicMaterial({color: 0x8a877f, opacity: 0.14, ...clear}));
      this.shade = new THREE.Mesh(disc, new THREE.ShadowMaterial({opacity: 0.26, ...clear}));
      this.shade.position.z = 0.0005;
      this.shade.receiveShadow = true;
      this.scene.add(this.sun, this.sun.target, sky, this.floor, this.shade);
      this.renderer.domElement.addEventListener("webglcontextrestored", () => seen.forEach((view) => view.change()));
    }

    // Draw a view's things into its canvas.
    draw(view, pixels) {
      if (pixels > this.size) this.renderer.setSize(this.size = pixels, pixels, false);
      const {turn, tilt, zoom, wide, middle, things, canvas} = view, camera = this.camera;
      const [a, e] = [rad(turn), rad(tilt)], away = wide / 2 / Math.tan(rad(FIELD / 2));
      camera.zoom = zoom;
      camera.position.set(Math.sin(a) * Math.cos(e), -Math.cos(a) * Math.cos(e), Math.sin(e));
      camera.position.multiplyScalar(away);
      camera.position.z += middle;
      camera.lookAt(0, 0, middle);
      camera.updateProjectionMatrix();
      // the light stays where the viewer is, as if the thing turned on a table
      const left = a - rad(52), reach = wide / WIDE;
      this.sun.position.set(Math.sin(left) * 1.7 * reach, -Math.cos(left) * 1.7 * reach, 2.5 * reach);
      const sides = {left: -reach, right: reach, bottom: -reach, top: reach};
      Object.assign(this.sun.shadow.camera, {...sides, near: 0.5, far: 6 * reach});
      this.sun.shadow.camera.updateProjectionMatrix();
      this.floor.scale.setScalar(0.72 * reach);
      this.shade.scale.setScalar(0.72 * reach);
      this.scene.add(things);
      this.renderer.setViewport(0, 0, pixels, pixels);
      this.renderer.clear();
      this.renderer.render(this.scene, camera);
      this.scene.remove(things);
      if (canvas.width !== pixels) canvas.width = canvas.height = pixels;
      const context = canvas.getContext("2d");
      context.clearRect(0, 0, pixels, pixels);
      context.drawImage(this.renderer.domElement, 0, this.size - pixels, pixels, pixels, 0, 0, pixels, pixels);
    }
  }

  // -- what is drawn --------------------------------------------------------------------------------------------------

  // The outer faces of a body's cells, darker in corners: rows are x, y, z, red, green, blue and, with bodies, whose.
  function facesOf(rows, stride, side, body, grounded) {
    const wide = side + 2, step = [1, wide, wide * wide], taken = new Uint8Array(wide ** 3);
    const own = (i) => (stride < 7 || rows[i + 6] === body);
    if (grounded) taken.fill(1, 0, wide * wide);
    for (let i = 0; i < rows.length; i += stride) {
      if (own(i)) taken[rows[i] + 1 + wide * (rows[i + 1] + 1 + wide * (rows[i + 2] + 1))] = 1;
    }
    const places = [], normals = [], colours = [], triangles = [];
    for (let i = 0; i < rows.length; i += stride) {
      if (!own(i)) continue;
      const cell = [rows[i], rows[i + 1], rows[i + 2]], at = cell[0] + 1 + wide * (cell[1] + 1 + wide * (cell[2] + 1));
      for (let face = 0; face < 6; face++) {
        const axis = face >> 1, out = face & 1, outside = at + (out ? step[axis] : -step[axis]);
        if (taken[outside]) continue;
        const u = (axis + (out ? 1 : 2)) % 3, v = (axis + (out ? 2 : 1)) % 3, first = places.length / 3, light = [];
        for (const [p, q] of [[0, 0], [1, 0], [1, 1], [0, 1]]) {
          const [du, dv] = [p ? step[u] : -step[u], q ? step[v] : -step[v]];
          const [one, other] = [taken[outside + du], taken[outside + dv]];
          light.push(SHADES[one && other ? 0 : 3 - one - other - taken[outside + du + dv]]);
          const corner = [...cell], normal = [0, 0, 0];
          corner[axis] += out; corner[u] += p; corner[v] += q;
          normal[axis] = out ? 1 : -1;
          places.push(corner[0] / side - 0.5, corner[1] / side - 0.5, corner[2] / side);
          normals.push(...normal);
          for (const k of [3, 4, 5]) colours.push(LINEAR[rows[i + k]] * light.at(-1));
        }
        const turned = light[0] + light[2] < light[1] + light[3] ? 1 : 0;  // so that corners darken evenly
        for (const k of [0, 1, 2, 0, 2, 3]) triangles.push(first + (k + turned) % 4);
      }
    }
    const geometry = new THREE.BufferGeometry();
    for (const [name, numbers] of Object.entries({position: places, normal: normals, color: colours})) {
      geometry.setAttribute(name, new THREE.Float32BufferAttribute(numbers, 3));
    }
    return geometry.setIndex(triangles);
  }

  function solid(geometry, settings) {
    const mesh = new THREE.Mesh(geometry, new THREE.MeshLambertMaterial(settings));
    mesh.castShadow = mesh.receiveShadow = true;
    return mesh;
  }

  function boxOf(extents, colour) {
    const geometry = new THREE.BoxGeometry(...extents), box = new THREE.Group();
    const lines = new THREE.LineBasicMaterial({color: 0x222222, transparent: true, opacity: 0.45});
    box.add(solid(geometry, {color: new THREE.Color(...colour).convertSRGBToLinear()}));
    box.add(new THREE.LineSegments(new THREE.EdgesGeometry(geometry), lines));
    return box;
  }

  // Where bodies are at each step: 15 numbers a body, its middle, two columns of its rotation, its extents, its colour.
  class Motion {
    constructor(data) {
      this.numbers = new Float32Array(bytesOf(data.motion).buffer);
      [this.bodies, this.rate] = [Number(data.bodies), Number(data.rate)];
      this.steps = this.numbers.length / 15 / this.bodies;
      this.seconds = (this.steps - 1) / this.rate;
    }

    row(step, body) { return this.numbers.subarray(15 * (step * this.bodies + body)).subarray(0, 15); }

    extents(body) { return [...this.row(0, body).subarray(9, 12)]; }

    colour(body) { return [...this.row(0, body).subarray(12, 15)]; }

    // The matrix of a body at a time in seconds, between steps by interpolation.
    at(seconds, body) {
      const time = clamp(seconds * this.rate, 0, this.steps - 1), step = Math.floor(time);
      const [place, turn] = this.pose(step, body), [nextPlace, nextTurn] = this.pose(Math.ceil(time), body);
      place.lerp(nextPlace, time - step);
      turn.slerp(nextTurn, time - step);
      return new THREE.Matrix4().compose(place, turn, new THREE.Vector3(1, 1, 1));
    }

    pose(step, body) {
      const row = this.row(step, body);
      const [place, first, second] = [0, 3, 6].map((k) => new THREE.Vector3(...row.subarray(k, k + 3)));
      first.normalize();
      second.addScaledVector(first, -first.dot(second)).normalize();
      const basis = new THREE.Matrix4().makeBasis(first, second, first.clone().cross(second));
      return [place, new THREE.Quaternion().setFromRotationMatrix(basis)];
    }

    // How far from the middle of the floor, and how high, anything comes.
    reach() {
      let [far, high] = [0, 0];
      for (let body = 0; body < this.bodies; body++) {
        const half = Math.hypot(...this.extents(body)) / 2;
        for (let step = 0; half && step < this.steps; step++) {
          const [x, y, z] = this.row(step, body);
          [far, high] = [Math.max(far, Math.hypot(x, y) + half), Math.max(high, z + half)];
        }
      }
      return [far, high];
    }
  }

  // -- views ----------------------------------------------------------------------------------------------------------

  class View {
    constructor(host) {
      Object.assign(this, {host, stills: [...host.children], wide: WIDE, middle: MIDDLE, time: 0, things: null});
      const data = host.dataset;
      this.motion = data.motion ? new Motion(data) : null;
      if (this.motion) this.fit();
      this.canvas = document.createElement("canvas");
      const label = `${data.label}. Drag it, or use the arrow keys, to turn it.`;
      Object.assign(this.canvas, {tabIndex: 0, ariaLabel: label, hidden: true});
      this.canvas.setAttribute("role", "img");
      host.append(this.canvas);
      if (this.motion) this.addBar();
      this.reset();
      this.touched = this.playing = false;
      this.listen();
    }

    fit() {
      const [far, high] = this.motion.reach();
      this.wide = clamp(Math.max(2.05 * far, 1.2 * high, WIDE), WIDE, 4);
      this.middle = Math.max(MIDDLE, 0.42 * high);
    }

    reset() { Object.assign(this, {turn: TURN, tilt: TILT, zoom: 1}); this.change(); }

    change() { this.stale = true; ask(); }

    turnBy(across, up) {
      this.touched = true;
      this.turn -= across;
      this.tilt = clamp(this.tilt + up, LOWEST, HIGHEST);
      this.change();
    }

    zoomBy(factor) { this.touched = true; this.zoom = clamp(this.zoom * factor, 0.5, 5); this.change(); }

    listen() {
      const {canvas} = this;
      let last = null;
      canvas.addEventListener("pointerdown", (event) => {
        if (event.button) return;
        last = [event.clientX, event.clientY];
        this.touched = true;
        canvas.setPointerCapture(event.pointerId);
      });
      canvas.addEventListener("pointermove", (event) => {
        if (!last) return;
        this.turnBy(0.5 * (event.clientX - last[0]), 0.5 * (event.clientY - last[1]));
        last = [event.clientX, event.clientY];
      });
      for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { last = null; });
      canvas.addEventListener("dblclick", () => this.reset());
      canvas.addEventListener("wheel", (event) => {
        if (!event.ctrlKey && !event.metaKey) return;  // the page scrolls
        event.preventDefault();
        this.zoomBy(Math.exp(-0.004 * event.deltaY));
      }, {passive: false});
      const keys = {ArrowLeft: () => this.turnBy(-12, 0), ArrowRight: () => this.turnBy(12, 0),
        ArrowUp: () => this.turnBy(0, 8), ArrowDown: () => this.turnBy(0, -8),
        "+": () => this.zoomBy(1.2), "-": () => this.zoomBy(1 / 1.2), Home: () => this.reset()};
      if (this.motion) keys[" "] = () => this.play(!this.playing);
      canvas.addEventListener("keydown", (event) => {
        if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
        event.preventDefault();
        keys[event.key]();
      });
    }

    addBar() {
      const [bar, button, slider] = ["div", "button", "input"].map((tag) => document.createElement(tag));
      bar.className = "bar";
      button.type = "button";
      const {seconds} = this.motion;
      Object.assign(slider, {type: "range", min: 0, max: seconds, step: "any", value: 0, ariaLabel: "Time"});
      button.addEventListener("click", () => this.play(!this.playing));
      slider.addEventListener("input", () => {
        this.play(false);
        this.time = Number(slider.value);
        this.change();
      });
      bar.append(button, slider);
      this.host.append(bar);
      Object.assign(this, {bar, button, slider});
    }

    play(playing, chosen = true) {
      this.playing = playing;
      this.chosen ||= chosen;
      this.host.classList.toggle("playing", playing);
      this.button.ariaLabel = playing ? "Pause" : "Play";
      if (playing && this.time >= this.motion.seconds) this.time = 0;
      ask();
    }

    // What is on the screen is there, and gone when it leaves.
    enter() {
      const data = this.host.dataset, rows = bytesOf(data.cells), stride = this.motion ? 7 : 6;
      this.things = new THREE.Group();
      const count = this.motion ? this.motion.bodies : 1;
      for (let body = 0; body < count; body++) {
        if (rows.length) {
          const mesh = solid(facesOf(rows, stride, Number(data.side), body, !this.motion), {vertexColors: true});
          if (this.motion) mesh.userData.start = this.motion.at(0, body).invert();
          this.things.add(mesh);
        } else if (this.motion) {
          const extents = this.motion.extents(body), isThere = extents.some((x) => x);
          this.things.add(isThere ? boxOf(extents, this.motion.colour(body)) : new THREE.Group());
        }
      }
      for (const thing of this.things.children) thing.matrixAutoUpdate = !this.motion;
      if (this.motion && !this.chosen) this.play(!calm.matches, false);
      this.change();
    }

    leave() {
      this.things?.traverse((thing) => { thing.geometry?.dispose(); thing.material?.dispose(); });
      this.things = null;
      this.canvas.width = this.canvas.height = 1;
    }

    // Go on by some seconds; return whether there is more to come without anybody doing anything.
    pass(seconds) {
      if (this.motion && this.playing) {
        this.time += seconds;
        if (this.time > this.motion.seconds + PAUSE) this.time = 0;
        this.stale = true;
        return true;
      }
      const mayMove = !this.motion && !this.touched && !calm.matches && !isSlow;
      const idles = mayMove && this.host.clientWidth >= LEAST_IDLE;
      if (idles) { this.turn -= IDLE * seconds; this.stale = true; }
      return idles;
    }

    draw() {
      if (this.canvas.hidden) {
        this.stills.forEach((still) => { still.style.display = "none"; });
        this.canvas.hidden = false;
      }
      const width = this.canvas.clientWidth;
      if (!width) return;
      if (this.motion) {
        this.things.children.forEach((thing, body) => {
          thing.matrix.copy(this.motion.at(this.time, body));
          if (thing.userData.start) thing.matrix.multiply(thing.userData.start);
        });
        this.bar.hidden = width < LEAST_IDLE;
        this.slider.value = Math.min(this.time, this.motion.seconds);
      }
      stage.draw(this, Math.round(width * Math.min(devicePixelRatio, 2)));
      this.stale = false;
    }
  }

  // -- the page -------------------------------------------------------------------------------------------------------

  const seen = new Set(), views = new WeakMap();
  let stage = null, asked = false, last = 0, isSlow = false, pace = 0;

  function ask() {
    if (asked || !stage) return;
    asked = true;
    requestAnimationFrame(frame);
  }

  function frame(now) {
    const seconds = last ? (now - last) / 1000 : 0;
    [asked, last] = [false, 0];
    // a machine that draws without a graphics card is left in peace
    pace += 0.05 * (Math.min(seconds, 0.2) - pace);
    isSlow ||= pace > SLOW;
    let more = false;
    for (const view of seen) {
      more = view.pass(Math.min(seconds, 0.1)) || more;
      if (view.stale) view.draw();
    }
    if (more) { last = now; ask(); }
  }

  function hasWebGL() {
    const context = document.createElement("canvas").getContext("webgl2");
    context?.getExtension("WEBGL_lose_context")?.loseContext();
    return Boolean(context);
  }

  const watcher = new IntersectionObserver((entries) => entries.forEach(({target, isIntersecting}) => {
    const view = views.get(target);
    if (isIntersecting && !seen.has(view)) show(view);
    else if (!isIntersecting && seen.delete(view)) view.leave();
  }), {rootMargin: "120px"});

  function show(view) {
    seen.add(view);
    view.enter();
    return view;
  }

  const sizes = new ResizeObserver((entries) => entries.forEach(({target}) => views.get(target).change()));

  function find(node) {
    const hosts = node.matches?.(".plait-3d") ? [node] : node.querySelectorAll?.(".plait-3d") || [];
    for (const host of hosts) {
      if (views.has(host)) continue;
      if (!stage && !hasWebGL()) return changes.disconnect();
      stage ||= new Stage();
      views.set(host, new View(host));
      const {top, bottom, width} = host.getBoundingClientRect();
      if (width && top < innerHeight && bottom > 0) show(views.get(host)).draw();  // at once, so that nothing blinks
      watcher.observe(host);
      sizes.observe(host);
    }
  }

  // Items that come later, as answers of a model do, are found too; those that are taken away are let go.
  const changes = new MutationObserver((records) => records.forEach(({addedNodes}) => addedNodes.forEach(find)));

  const sheet = new CSSStyleSheet();
  sheet.replaceSync(STYLE);
  document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
  changes.observe(document.documentElement, {childList: true, subtree: true});
  find(document.documentElement);
})();
