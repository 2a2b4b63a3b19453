'use strict';
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const get = id => document.getElementById(id);
const pictures = all('#sheets .class').map(section => ({
  section,
  list: section.querySelector('.groups'),
  groups: all('.group', section).map(element => ({
    element,
    list: element.querySelector('ul'),
    replicas: all('.synthetic', element),
  })),
}));

function passes(item) {
  const wanted = get('flag').value, flags = item.dataset.flags;
  return !wanted || (wanted === '*' ? flags : wanted === '-' ? !flags
    : flags.split('|').includes(wanted));
}

// the only picture of a sheet that the tab key stops at; arrow keys reach the others
function stopAt(sheet, button) {
  all('button.open[tabindex="0"]', sheet).forEach(other => other.tabIndex = -1);
  if (button) button.tabIndex = 0;
}

const reachable = sheet => all('button.open', sheet).filter(each => !each.closest('[hidden]'));

function filter() {
  let count = 0;
  for (const { section, groups } of pictures) {
    let inSection = 0;
    for (const { element, replicas } of groups) {
      let inGroup = 0;
      for (const item of replicas) {
        item.hidden = !passes(item);
        inGroup += !item.hidden;
      }
      element.hidden = !inGroup;
      inSection += inGroup;
    }
    const other = get('class').value && get('class').value !== section.dataset.class;
    section.hidden = Boolean(other) || !inSection;
    count += section.hidden ? 0 : inSection;
    stopAt(section, reachable(section)[0]);
  }
  get('count').textContent = count + ' synthetic images shown';
}

// groups go by their worst replica; what was not measured goes last
function sort() {
  const option = get('order').selectedOptions[0], score = option.value;
  const sign = option.dataset.descending ? -1 : 1;
  const key = item => item.dataset[score] === undefined ? Infinity : sign * item.dataset[score];
  const compare = (a, b) => a === b ? 0 : a < b ? -1 : 1;
  for (const { section, list, groups } of pictures) {
    const keyed = groups.map(group => {
      const replicas = group.replicas.map(item => [score ? key(item) : 0, item]);
      replicas.sort((a, b) => compare(a[0], b[0]));
      group.list.append(...replicas.map(each => each[1]));
      return [replicas[0][0], group.element];
    });
    keyed.sort((a, b) => compare(a[0], b[0]));
    list.append(...keyed.map(each => each[1]));
    stopAt(section, reachable(section)[0]);
  }
  if (score) get('sheets').dataset.shown = score;
  else delete get('sheets').dataset.shown;
}

let current = null;
function show(button) {
  current = button;
  const image = button.querySelector('img');
  const item = button.parentElement, isSeed = item.classList.contains('seed');
  const seed = item.parentElement.querySelector('.seed img');
  get('large-image').src = image.src;
  get('large-image').alt = image.alt;
  get('large-caption').textContent = image.alt;
  get('large-kind').textContent = isSeed ? 'seed image' : 'synthetic';
  get('large-seed').hidden = isSeed || !seed;
  if (seed) {
    get('large-seed-image').src = seed.src;
    get('large-seed-image').alt = seed.alt;
  }
  if (!get('large').open) get('large').showModal();
}

function move(button, step) {
  const list = reachable(button.closest('.list, #sheets'));
  return list[list.indexOf(button) + step];
}

document.addEventListener('click', event => {
  const button = event.target.closest('button.open');
  if (button) show(button);
});
function follow(event, from) {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const to = step && from && move(from, step);
  if (to) event.preventDefault();
  return to;
}
document.querySelector('main').addEventListener('keydown', event => {
  const to = follow(event, event.target.closest('button.open'));
  if (!to) return;
  stopAt(to.closest('.sheet'), to);
  to.focus();
});
get('large').addEventListener('keydown', event => {
  const to = follow(event, current);
  if (to) show(to);
});
get('order').addEventListener('change', sort);
get('class').addEventListener('change', filter);
get('flag').addEventListener('change', filter);
for (const [id, step] of [['previous', -1], ['next', 1]]) {
  get(id).addEventListener('click', () => {
    const to = move(current, step);
    if (to) show(to);
  });
}
get('large').addEventListener('close', () => current && current.focus());
