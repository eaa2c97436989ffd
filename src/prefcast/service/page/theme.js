// The button that changes the theme. The choice stays in this browser.

import { byId } from "./dom.js";

const THEMES = ["system", "light", "dark"];

export function theme() {
  const button = byId("theme");
  let chosen = localStorage.getItem("prefcast-theme") ?? "system";
  const apply = () => {
    if (chosen === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = chosen;
    button.textContent = { system: "◐ System", light: "○ Light", dark: "● Dark" }[chosen];
    button.setAttribute("aria-label", `Theme: ${chosen}. Change it`);
  };
  button.addEventListener("click", () => {
    chosen = THEMES[(THEMES.indexOf(chosen) + 1) % THEMES.length];
    localStorage.setItem("prefcast-theme", chosen);
    apply();
  });
  apply();
}
