// Small helps on pages that work without them: theme, keys, following a live run, the slider of the heat map.
"use strict";
const root = document.documentElement;
const stored = localStorage.getItem("theme");
if (stored) root.dataset.theme = stored;

function changeTheme() {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
}
document.getElementById("theme").addEventListener("click", changeTheme);

const items = () => [...document.querySelectorAll("main a.item")];
function move(step) {
  const all = items();
  if (!all.length) return;
  const at = all.indexOf(document.activeElement);
  all[Math.max(0, Math.min(all.length - 1, at < 0 ? 0 : at + step))].focus();
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
  const search = document.querySelector("main input[type=search]");
  const follow = (rel) => document.querySelector(`main a[rel=${rel}]`)?.click();
  const keys = {
    "/": () => search?.focus(), j: () => move(1), k: () => move(-1), h: () => location.assign("/"), t: changeTheme,
    ArrowRight: () => follow("next"), ArrowLeft: () => follow("prev"),
  };
  if (keys[event.key]) { keys[event.key](); if (event.key === "/") event.preventDefault(); }
});

function slide() {
  const range = document.getElementById("step");
  if (!range) return;
  const show = () => {
    document.getElementById("step-out").value = range.value;
    document.querySelectorAll("#heat tr[data-step]").forEach((row) => row.classList.toggle("later", Number(row.dataset.step) > Number(range.value)));
  };
  range.addEventListener("input", show);
}
slide();

async function refresh() {
  const busy = document.querySelector("main input:focus, main textarea:focus, main select:focus, main details[open]:hover");
  if (!document.hidden && !busy) {
    try {
      const page = new DOMParser().parseFromString(await (await fetch(location.href)).text(), "text/html");
      const focus = document.activeElement?.getAttribute("href");
      const fresh = page.querySelector("main");
      if (fresh && fresh.innerHTML !== document.querySelector("main").innerHTML) {
        document.querySelector("main").replaceWith(fresh);
        slide();
        if (focus) document.querySelector(`main a[href="${CSS.escape(focus)}"]`)?.focus();
      }
      if (!page.body.hasAttribute("data-live")) return;
    } catch { /* the server is gone for a moment: try again */ }
  }
  setTimeout(refresh, 3000);
}
if (document.body.hasAttribute("data-live")) setTimeout(refresh, 3000);
