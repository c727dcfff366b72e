// The page for searching: Pagefind's results, in the page's language first.
'use strict';

const root = document.documentElement.dataset.content_root;
const query = new URLSearchParams(location.search).get('q')?.trim() ?? '';

/** Run a script of the site. */
function load(path) {
  return new Promise((resolve, reject) => {
    const script = document.createElement('script');
    script.addEventListener('load', resolve);
    script.addEventListener('error', reject);
    script.src = `${root}${path}`;
    document.head.append(script);
  });
}

/** Pagefind, and the place where it looks for its index. */
async function engine() {
  if (location.protocol !== 'file:') {
    const base = new URL(`${root}pagefind/`, location).href;
    return [await import(`${base}pagefind.js`), base];
  }
  // A page that was opened as a file may fetch nothing
  await load('pagefind/files.js');
  const base = '/pagefind-in-memory/';
  const bytes = (name) =>
    Uint8Array.from(atob(pagefindFiles[name]), (it) => it.charCodeAt(0));
  window.fetch = async (url) =>
    new Response(bytes(url.slice(base.length).split('?')[0]));
  const code = new Blob([bytes('pagefind.js')], { type: 'text/javascript' });
  return [await import(URL.createObjectURL(code)), base];
}

async function find(pagefind, basePath, language) {
  const page = document.documentElement;
  const own = page.lang;
  // Pagefind chooses its index by the page's language
  page.lang = language;
  const index = pagefind.createInstance({ basePath, baseUrl: '/' });
  page.lang = own;
  await index.init(language);
  const { results } = await index.search(query);
  return Promise.all(results.slice(0, 20).map((it) => it.data()));
}

function element(name, text = '') {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function link(url, text) {
  const made = element('a', text);
  made.href = `${root}${url.replace(/^\//, '')}`;
  return made;
}

/** How well a part of a page fits: its heading counts more than its text. */
function score(part) {
  const words = query.toLowerCase().split(/\s+/);
  const title = part.title.toLowerCase();
  return (
    part.weighted_locations.reduce((sum, it) => sum + it.balanced_score, 0) +
    1000 * words.filter((word) => title.includes(word)).length
  );
}

/** A page that was found: its title, and its parts that fit best. */
function shown(page) {
  const made = element('article');
  const heading = element('h2');
  heading.append(link(page.url, page.meta.title));
  made.append(heading);
  const parts = page.sub_results.sort((a, b) => score(b) - score(a));
  for (const part of parts.slice(0, 3)) {
    const text = element('p');
    if (part.title !== page.meta.title) {
      text.append(link(part.url, part.title), element('br'));
    }
    const excerpt = element('span');
    // Pagefind has escaped all but its own <mark>
    excerpt.innerHTML = part.excerpt;
    text.append(excerpt);
    made.append(text);
  }
  return made;
}

async function search() {
  const results = document.getElementById('results');
  for (const box of document.querySelectorAll('[name=q]')) box.value = query;
  if (!query) return;
  const language = document.documentElement.lang;
  const pagefind = await engine();
  const found = await find(...pagefind, language);
  results.append(...found.map(shown));
  if (!found.length) results.append(element('p', words['Nothing found']));
  if (language === 'en') return;
  const english = await find(...pagefind, 'en');
  if (!english.length) return;
  const section = element('section');
  section.lang = 'en';
  const heading = element('h2', words['In English']);
  heading.lang = language;
  section.append(heading, ...english.map(shown));
  results.append(section);
}

addEventListener('DOMContentLoaded', search);
