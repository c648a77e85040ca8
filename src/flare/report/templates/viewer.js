"use strict";
// Two views of one case, reference and prediction, that turn together; they start when they come into sight.
(() => {
  const { Niivue, NVImage, SLICE_TYPE } = niivue;
  const data = JSON.parse(document.getElementById("viewer-data").textContent);
  const section = document.getElementById("viewer");
  const chooser = document.getElementById("viewer-case");
  const opacity = document.getElementById("viewer-opacity");
  const names = ["reference", "prediction"];
  const hidden = new Set();
  let views = [];
  let asked = 0; // how often a case was asked for: a later wish makes an earlier one stop

  const mode = () => document.querySelector("input[name=mode]:checked").value;

  // What changes a view waits until there is one; another case can be chosen while one is loading.
  function enter(state) {
    section.dataset.state = state;
    chooser.disabled = state === "failed";
    const buttons = document.querySelectorAll("#viewer-classes button");
    for (const control of [document.getElementById("viewer-mode"), opacity, ...buttons]) {
      control.disabled = state !== "ready";
    }
  }

  function fail(told, error) {
    if (error) console.error(error);
    const message = document.getElementById("viewer-message");
    message.textContent = told;
    message.hidden = false;
    document.getElementById("viewer-canvases").hidden = true;
    enter("failed");
  }

  function arrange() {
    const solid = mode() === "render";
    for (const view of views) {
      view.setSliceType(solid ? SLICE_TYPE.RENDER : SLICE_TYPE.MULTIPLANAR);
      view.opts.backColor = solid ? [1, 1, 1, 1] : [0, 0, 0, 1];
      view.setOpacity(0, solid ? 0 : 1);
      view.setOpacity(1, solid ? 1 : opacity.value / 100);
      view.drawScene();
    }
    opacity.disabled = solid;
  }

  // A hidden class leaves the map itself: made clear alone, it would still tint the surfaces that it touches.
  function hide() {
    for (const view of views) {
      const labels = view.volumes[1];
      labels.img.set(labels.whole.map((id) => (hidden.has(id) ? 0 : id)));
      view.updateGLVolume();
    }
  }

  async function show(item) {
    const wish = ++asked;
    enter("loading");
    const loaded = [];
    for (const name of names) {
      const grey = await NVImage.loadFromBase64({
        base64: item.image, name: "image.nii.gz", colormap: "gray", cal_min: 0, cal_max: 255, trustCalMinMax: true,
      });
      if (wish !== asked) return;
      const labels = await NVImage.loadFromBase64({ base64: item[name], name: "labels.nii.gz" });
      if (wish !== asked) return;
      labels.whole = labels.img.slice();
      labels.setColormapLabel(data.lookup);
      loaded.push([grey, labels]);
    }
    for (const [place, view] of views.entries()) {
      const [grey, labels] = loaded[place];
      while (view.volumes.length) view.removeVolume(view.volumes[0]);
      view.addVolume(grey);
      view.addVolume(labels);
      view.setRenderAzimuthElevation(180, 12);
      view.setScale(1.35);
    }
    hide();
    enter("ready");
    arrange();
  }

  async function start() {
    if (!document.createElement("canvas").getContext("webgl2")) {
      fail("This browser offers no WebGL 2, which the 3D viewer needs.");
      return;
    }
    const made = [];
    for (const name of names) {
      const view = new Niivue({
        backColor: [1, 1, 1, 1], show3Dcrosshair: false, isOrientCube: false, crosshairWidth: 1, isColorbar: false,
        isRadiologicalConvention: true, sagittalNoseLeft: true, crosshairColor: [1, 1, 1, 0.5],
        dragAndDropEnabled: false, logLevel: "silent", loadingText: "", multiplanarShowRender: 0, textHeight: 0.05,
      });
      await view.attachToCanvas(document.getElementById(`viewer-${name}`));
      made.push(view);
    }
    views = made; // all at once: until then a change of case has nothing to show itself in
    views[0].broadcastTo([views[1]], { "2d": true, "3d": true });
    views[1].broadcastTo([views[0]], { "2d": true, "3d": true });
    await show(data.cases[chooser.value]);
  }

  data.cases.forEach((item, place) => chooser.add(new Option(item.told ? `${item.name} (${item.told})` : item.name, place)));
  data.lookup.I.slice(1).forEach((id, place) => {
    const button = document.createElement("button");
    const swatch = document.createElement("i");
    const [r, g, b] = ["R", "G", "B"].map((key) => data.lookup[key][place + 1]);
    swatch.style.background = `rgb(${r},${g},${b})`;
    button.append(swatch, data.lookup.labels[place + 1]);
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => {
      if (!hidden.delete(id)) hidden.add(id);
      button.setAttribute("aria-pressed", String(!hidden.has(id)));
      hide();
    });
    document.getElementById("viewer-classes").append(button);
  });
  const broken = (error) => fail("The 3D viewer could not show the case.", error);
  chooser.addEventListener("change", () => views.length && show(data.cases[chooser.value]).catch(broken));
  opacity.addEventListener("input", arrange);
  document.getElementById("viewer-mode").addEventListener("change", arrange);
  enter("waiting");

  new IntersectionObserver((entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    start().catch(broken);
  }, { rootMargin: "300px" }).observe(section);
})();
