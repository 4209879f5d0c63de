// English strings of the models, runs, status and settings pages.

export const pagesEn = {
  "pages.loading": "Loading",
};
