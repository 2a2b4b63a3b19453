'use strict';
const all = selector => [...document.querySelectorAll(selector)];
const get = id => document.getElementById(id);
const names = ['strength', 'replay', 'noise_scale'];
const choices = all('.choice'), cells = all('.cell');
const same = (one, other) => names.every(name => one[name] === other[name]);
const now = () => Object.fromEntries(names.map(name =>
  [name, get(name).dataset.values.split(' ')[get(name).value]]));

function measure(name, text, value) {
  if (!get(name)) return;
  get(name).textContent = text;
  get(`${name}-meter`).value = value;
}

function show() {
  const dials = now();
  for (const name of names) {
    get(`${name}-value`).textContent = dials[name];
    // what a screen reader says in place of the position's number
    get(name).setAttribute('aria-valuetext', dials[name]);
  }
  for (const choice of choices) choice.hidden = !same(choice.dataset, dials);
  const { dataset } = choices.find(choice => !choice.hidden);
  measure('distance', (+dataset.distance).toFixed(3), dataset.distance);
  measure('agreement', `${Math.round(100 * dataset.agreement)} %`, dataset.agreement);
  measure('diversity', (+dataset.diversity).toFixed(3), dataset.diversity);
  if (get('agreement')) {
    get('agreement').classList.toggle('missed', +dataset.agreement < get('agreement-meter').low);
  }
  get('command').value = dataset.command;
  get('python').value = dataset.python;
  get('copied').textContent = '';
  get('overview-noise').textContent = dials.noise_scale;
  for (const cell of cells) {
    const at = { ...dials, strength: cell.dataset.strength, replay: cell.dataset.replay };
    const { distance, agreement } = choices.find(choice => same(choice.dataset, at)).dataset;
    const judged = cell.dataset.judged === 'yes';
    cell.textContent = judged ? `${Math.round(100 * agreement)}` : (+distance).toFixed(2);
    cell.style.setProperty('--share', judged ? agreement : Math.min(1, distance / 0.4));
    cell.setAttribute('aria-pressed', same(at, dials));
    cell.setAttribute('aria-label', `strength ${at.strength}, replay ${at.replay}: ` +
      (judged ? `${cell.textContent} % of the labels kept` : `distance ${cell.textContent}`));
  }
}

function goTo(dials) {
  for (const name of names) {
    if (name in dials) get(name).value = get(name).dataset.values.split(' ').indexOf(dials[name]);
  }
  show();
}

names.forEach(name => get(name).addEventListener('input', show));
cells.forEach(cell => cell.addEventListener('click', () => goTo(cell.dataset)));
const best = get('best');
if (best) best.addEventListener('click', () => goTo(choices[best.dataset.choice].dataset));
all('.copy').forEach(button => button.addEventListener('click', async () => {
  const field = get(button.dataset.of);
  field.focus();
  field.select();
  let copied = false;
  try {
    await navigator.clipboard.writeText(field.value);
    copied = true;
  } catch {
    copied = document.execCommand('copy');  // browsers that keep the clipboard from files
  }
  get('copied').textContent = copied ? 'Copied.' : 'Press Ctrl+C to copy.';
}));
goTo(best ? choices[best.dataset.choice].dataset : choices[0].dataset);
