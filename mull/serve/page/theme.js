// Before the first paint, so that a page in the dark never flashes white.
(() => {
  try {
    const saved = JSON.parse(localStorage.getItem("mull.settings") ?? "{}");
    if (saved.theme === "light" || saved.theme === "dark") {
      document.documentElement.dataset.theme = saved.theme;
    }
    if (saved.language === "ko" || saved.language === "en") {
      document.documentElement.lang = saved.language;
    }
  } catch {
    // Storage may be forbidden or hold nonsense; the system's own theme is then right.
  }
})();
