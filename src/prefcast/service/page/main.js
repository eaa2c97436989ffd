// Starts the page: views, theme, the name of the forecaster.

import { ask } from "./api.js";
import { byId, visible } from "./dom.js";
import { FileView } from "./fileview.js";
import { PairView } from "./pairview.js";
import { theme } from "./theme.js";

const VIEWS = ["pair", "file"];

function show(view) {
  for (const name of VIEWS) {
    const tab = byId(`tab-${name}`);
    tab.setAttribute("aria-selected", String(name === view));
    tab.tabIndex = name === view ? 0 : -1;
    byId(`view-${name}`).hidden = name !== view;
  }
  if (view === "file") fileView.shown();
  document.title = view === "pair" ? "prefcast" : "prefcast: a file";
}

function tabs() {
  for (const [at, name] of VIEWS.entries()) {
    byId(`tab-${name}`).addEventListener("click", () => show(name));
    byId(`tab-${name}`).addEventListener("keydown", (event) => {
      if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
      const other = VIEWS[(at + 1) % VIEWS.length];
      show(other);
      byId(`tab-${other}`).focus();
    });
  }
}

async function whoForecasts() {
  try {
    const { forecaster, limits } = await ask("v1/models");
    byId("forecaster").textContent = `${visible(forecaster.name)} forecasts`;
    return limits;
  } catch (error) {
    byId("forecaster").textContent = error.status === 401 ? "no token" : "no answer from the server";
    return null;
  }
}

tabs();
theme();
const pairView = new PairView();
const limits = whoForecasts();
const fileView = new FileView(pairView, limits, show);
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !byId("view-pair").hidden) {
    event.preventDefault();
    pairView.forecast();
  }
});
window.addEventListener("hashchange", () => { show("pair"); fileView.leave(); pairView.open(); });
await limits;
pairView.open();
