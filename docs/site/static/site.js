// The switches keep the reader's choice and place.
'use strict';

const NOTEBOOK = /notebooks\/(\w+)\/bert-(\w+)\.html/;
const KEY = 'd2lbert-notebook';

/** The last mark of a place that is not below the switches. */
function place(switches) {
  const edge = switches.getBoundingClientRect().bottom + 24;
  const above = [...document.querySelectorAll('.place')].filter(
    (mark) => mark.getBoundingClientRect().top <= edge,
  );
  return above.length ? `#${above[above.length - 1].id}` : '';
}

function keepPlace(switches) {
  for (const link of switches.querySelectorAll('a')) {
    link.addEventListener('click', () => {
      link.hash = place(switches);
    });
  }
}

/** Where a browser keeps nothing, the links lead where they are written. */
function remembered(now) {
  try {
    if (now) localStorage.setItem(KEY, now);
    return localStorage.getItem(KEY);
  } catch {
    return now;
  }
}

/** Links of the sidebar and the first page lead to what was read last. */
function keepChoice(last) {
  for (const link of document.querySelectorAll('a[href*="/bert-"]')) {
    if (!link.closest('.switches')) {
      link.href = link.href.replace(NOTEBOOK, last);
    }
  }
}

/** On a page of no version, the switches change what was read last. */
function followChoice(switches, last) {
  const [, language, framework] = last.match(NOTEBOOK);
  for (const link of switches.querySelectorAll('a')) {
    const [, itsLanguage, itsFramework] = link.href.match(NOTEBOOK);
    const target = link.closest('.framework')
      ? `notebooks/${language}/bert-${itsFramework}.html`
      : `notebooks/${itsLanguage}/bert-${framework}.html`;
    link.href = link.href.replace(NOTEBOOK, target);
    if (target === last) link.setAttribute('aria-current', 'true');
  }
}

/** What scrolls sideways can be scrolled with the keyboard. */
function reachScrolling() {
  const boxes = 'pre, .table-wrapper, div.math, .cell_output .output';
  for (const box of document.querySelectorAll(boxes)) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
}

/** The theme's parts have no names, and its search has no heading. */
function nameParts() {
  const names = { '.sidebar-drawer': 'Contents', '.toc-drawer': 'This page' };
  for (const [part, name] of Object.entries(names)) {
    document.querySelector(part)?.setAttribute('aria-label', name);
  }
  if (document.querySelector('h1')) return;
  const heading = document.createElement('h1');
  heading.textContent = 'Search';
  document.querySelector('article')?.prepend(heading);
}

addEventListener('DOMContentLoaded', () => {
  nameParts();
  const switches = document.querySelector('.switches');
  const now = location.pathname.match(NOTEBOOK)?.[0];
  const last = remembered(now);
  if (now) keepPlace(switches);
  if (!last || !NOTEBOOK.test(last)) return;
  keepChoice(last);
  if (!now) followChoice(switches, last);
});
addEventListener('load', reachScrolling);
