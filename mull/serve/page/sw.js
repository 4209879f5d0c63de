// Keeps the shell (the page and its hashed assets), so that an installed mull opens at once and can
// say by itself that its server is not running. Nothing said in a chat is ever kept here.
const SHELL = "mull-shell-1";

self.addEventListener("install", () => self.skipWaiting());

self.addEventListener("activate", (event) => {
  event.waitUntil(
    caches
      .keys()
      .then((names) => Promise.all(names.filter((n) => n !== SHELL).map((n) => caches.delete(n))))
      .then(() => self.clients.claim()),
  );
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  const url = new URL(request.url);
  if (request.method !== "GET" || url.origin !== location.origin) return;
  if (url.pathname.startsWith("/assets/")) {
    event.respondWith(fromCacheFirst(request));
  } else if (request.mode === "navigate" && !/^\/(api|v1|docs|metrics|health)(\/|$)/.test(url.pathname)) {
    event.respondWith(pageFromNetworkFirst(request));
  }
});

async function fromCacheFirst(request) {
  const cache = await caches.open(SHELL);
  const kept = await cache.match(request);
  if (kept) return kept;
  const answer = await fetch(request);
  if (answer.ok) await cache.put(request, answer.clone());
  return answer;
}

async function pageFromNetworkFirst(request) {
  const cache = await caches.open(SHELL);
  try {
    const answer = await fetch(request);
    if (answer.ok && (answer.headers.get("content-type") ?? "").includes("text/html")) {
      await dropOldAssets(cache, await answer.clone().text());
      await cache.put("/", answer.clone());
    }
    return answer;
  } catch (error) {
    const kept = await cache.match("/");
    if (kept) return kept;
    throw error;
  }
}

/** A new build has a new index: assets of the one before are of no more use. */
async function dropOldAssets(cache, html) {
  const before = await cache.match("/");
  if (!before || (await before.text()) === html) return;
  for (const key of await cache.keys()) await cache.delete(key);
}
