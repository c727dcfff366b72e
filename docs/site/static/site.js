// What the theme does not do: the switches keep the reader's place, and all
// parts have names in the page's language.
'use strict';

const words = JSON.parse(document.getElementById('words').textContent);

/** The last mark of a place that is not below the switches. */
function place(switches) {
  const edge = switches.getBoundingClientRect().bottom + 24;
  const above = [...document.querySelectorAll('.place')].filter(
    (mark) => mark.getBoundingClientRect().top <= edge,
  );
  return above.length ? `#${above[above.length - 1].id}` : '';
}

function keepPlace() {
  const switches = document.querySelector('.switches');
  for (const link of switches.querySelectorAll('nav a')) {
    link.addEventListener('click', () => {
      link.hash = place(switches);
    });
  }
}

/** What scrolls sideways can be scrolled with the keyboard. */
function reachScrolling() {
  const boxes =
    'pre, .table-wrapper, div.math, .cell_output, .cell_output .output, p';
  for (const box of document.querySelectorAll(boxes)) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
}

/** The theme's parts have names in English, or none. */
function nameParts() {
  const names = {
    '.sidebar-drawer': 'Contents',
    '#__navigation': 'Contents',
    '.toc-drawer': 'On this page',
    '#__toc': 'On this page',
    '.theme-toggle': 'Change the colours',
  };
  for (const [parts, name] of Object.entries(names)) {
    for (const part of document.querySelectorAll(parts)) {
      part.setAttribute('aria-label', words[name]);
    }
  }
}

/** The buttons that copy code come later, from a script of their own. */
function nameCopyButtons() {
  // That script's own words, which it has in few languages
  messages[locale].copy_success = words.Copied;
  // In English, and shown where the mouse rests
  for (const title of document.querySelectorAll('svg title')) title.remove();
  for (const button of document.querySelectorAll('.copybtn')) {
    button.setAttribute('aria-label', words.Copy);
    button.dataset.tooltip = words.Copy;
  }
}

addEventListener('DOMContentLoaded', () => {
  nameParts();
  keepPlace();
});
addEventListener('load', () => {
  reachScrolling();
  nameCopyButtons();
});
