"""The board on the tab Rank on which answers are dragged to their places, as a script for the page.

A place holds one answer, or several that tie; between two places there is room for one more. The board
shows what the order's text field says and writes into it, so that buttons, keys, typing and dragging
are one order. It works by pointer events: mouse, pen and finger alike. Without it the buttons do the same.
"""

# the fields that it reads; `rank.py` gives them these ids
BOARD, ORDER, ANSWER, PLACE_BUTTON = "rank-board", "rank-order", "rank-answer-", "rank-place-"

_SCRIPT = """
(() => {
  const find = (selector) => document.querySelector(selector);
  const field = () => find("#%(order)s textarea, #%(order)s input");
  const seen = (element) => element && element.getClientRects().length > 0;
  const shown = () => {
    const found = [];
    for (let n = 1; n <= 9; n++) if (seen(document.getElementById("%(button)s" + n))) found.push(n);
    return found;
  };
  const groups = (numbers) => {
    const left = new Set(numbers);
    const take = (word) => left.delete(Number(word)) && [Number(word)];
    return field().value.split(">")
      .map((tied) => tied.split("=").flatMap((word) => take(word.trim()) || []))
      .filter((tied) => tied.length);
  };
  const write = (order) => {
    field().value = order.map((tied) => tied.join(" = ")).join(" > ");
    field().dispatchEvent(new Event("input", { bubbles: true }));
  };
  const moved = (order, number, target) => {
    const rest = order.map((tied) => tied.filter((n) => n !== number));
    if (target.dataset.place) rest[target.dataset.place].push(number);
    if (target.dataset.gap) rest.splice(target.dataset.gap, 0, [number]);
    return rest.filter((tied) => tied.length);
  };
  const made = (kind, parent, text) => {
    const element = parent.appendChild(document.createElement("div"));
    element.className = kind;
    element.textContent = text || "";
    return element;
  };
  const chip = (parent, number) => {
    const answer = find("#%(answer)s" + number + " textarea");
    const said = answer ? answer.value.replace(/\\s+/g, " ") : "";
    const start = said.length > 60 ? said.slice(0, 59) + "…" : said;
    const element = made("rank-chip", parent, number + "  " + start);
    element.dataset.number = number;
    element.title = "Drag answer " + number + " to its place; on another answer it ties with it.";
  };
  const draw = (board, numbers) => {
    const order = groups(numbers);
    board.replaceChildren();
    const tray = made("rank-tray", board);
    tray.dataset.tray = "1";
    const loose = numbers.filter((n) => !order.flat().includes(n));
    made("rank-name", tray, loose.length ? "Drag from here" : "All are placed");
    loose.forEach((n) => chip(tray, n));
    order.forEach((tied, index) => {
      made("rank-gap", board).dataset.gap = index;
      const place = made("rank-place", board);
      place.dataset.place = index;
      made("rank-name", place, index ? String(index + 1) : "1, the best");
      tied.forEach((n) => chip(place, n));
    });
    const last = made("rank-gap", board, order.length ? "" : "Drop the best answer here");
    last.dataset.gap = order.length;
  };
  let drag = null, before = "";
  const look = () => {
    const home = document.getElementById("%(board)s");
    if (drag || !seen(home) || !field()) return;
    const board = home.querySelector(".rank-places") || made("rank-places", home);
    const numbers = shown();
    const texts = numbers.map((n) => find("#%(answer)s" + n + " textarea")?.value);
    const now = JSON.stringify([field().value, numbers, texts]);
    if (now === before && board.childElementCount) return;
    before = now;
    if (numbers.length) draw(board, numbers);
    else board.replaceChildren();
  };
  const under = (event) => {
    const element = document.elementFromPoint(event.clientX, event.clientY);
    return element && element.closest("[data-place], [data-gap], [data-tray]");
  };
  const aim = (target) => {
    document.querySelectorAll(".rank-aim").forEach((e) => e.classList.remove("rank-aim"));
    if (target) target.classList.add("rank-aim");
  };
  const drop = (target) => {
    const { number, element } = drag;
    drag = null;
    aim(null);
    element.classList.remove("rank-held");
    element.style.transform = "";
    if (target) write(moved(groups(shown()), number, target));
    look();
  };
  document.addEventListener("pointerdown", (event) => {
    const element = event.target.closest(".rank-chip");
    if (!element || event.button || drag) return;
    event.preventDefault();
    const { clientX: x, clientY: y } = event;
    drag = { number: Number(element.dataset.number), element, x, y, pointer: event.pointerId };
    element.classList.add("rank-held");
  });
  document.addEventListener("pointermove", (event) => {
    if (!drag || event.pointerId !== drag.pointer) return;
    const [x, y] = [event.clientX - drag.x, event.clientY - drag.y];
    drag.element.style.transform = `translate(${x}px, ${y}px)`;
    aim(under(event));
  });
  document.addEventListener("pointerup", (event) => {
    if (drag && event.pointerId === drag.pointer) drop(under(event));
  });
  document.addEventListener("pointercancel", () => drag && drop(null));
  document.addEventListener("input", look);
  setInterval(look, 200); // Gradio sets a field without an event
})();
"""

DRAGGING_JS = _SCRIPT % {"board": BOARD, "order": ORDER, "answer": ANSWER, "button": PLACE_BUTTON}
