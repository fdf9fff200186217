// The page's own script: keyboard shortcuts, the buttons and the board of Rank, and tooltips.
// scripts.py defines TOOLKIT before it. Gradio's own way, `js=`, compiles a
// string, which the page's Content-Security-Policy forbids.
(() => {
  const find = (selector) => document.querySelector(selector);
  const byId = (id) => document.getElementById(id);
  const visible = (element) => element && element.getClientRects().length > 0;

  // ---- Keyboard shortcuts. A key clicks its button, so the keyboard can do nothing else. Keys are
  // ignored while someone types, and if the button's tab is not open.
  const typing = (element) =>
    element &&
    (element.isContentEditable ||
      element.tagName === "TEXTAREA" ||
      element.tagName === "SELECT" ||
      (element.tagName === "INPUT" && !["checkbox", "radio", "range"].includes(element.type)));
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.repeat || event.isComposing) return;
    if (event.altKey || event.metaKey || typing(event.target)) return;
    const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const key = event.ctrlKey ? "Control+" + name : name;
    for (const keys of TOOLKIT.keys) {
      const button = Object.hasOwn(keys, key) && byId(keys[key]);
      if (visible(button) && !button.disabled) {
        event.preventDefault();
        button.click();
        return;
      }
    }
  });

  // ---- Arena: the first of two quick verdicts is the vote. The server disables the buttons later.
  const verdicts = ["arena-a", "arena-b", "arena-tie", "arena-both-bad", "arena-skip"];
  let sent = 0; // ms since 1970
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button || !verdicts.includes(button.id)) return;
    if (Date.now() - sent < 2000 && !verdicts.every((id) => byId(id).dataset.wasDisabled)) {
      event.stopPropagation();
      event.preventDefault();
      return;
    }
    sent = Date.now();
    verdicts.forEach((id) => delete byId(id).dataset.wasDisabled);
  }, true);
  setInterval(() => {
    for (const button of verdicts.map(byId)) {
      if (button?.disabled && !button.dataset.wasDisabled) button.dataset.wasDisabled = "1";
    }
  }, 50);

  // ---- The order on Rank is a text such as "3 > 1 = 2". Its buttons, the board, the keys and typing
  // all edit that text; none of them needs the server.
  const orderField = () => find(`#${TOOLKIT.order} textarea, #${TOOLKIT.order} input`);
  const setOrder = (text) => {
    orderField().value = text;
    orderField().dispatchEvent(new Event("input", { bubbles: true }));
  };
  const orderAfter = (order, buttonId) => {
    if (buttonId === "rank-clear") return "";
    if (buttonId === "rank-tie") return /[0-9]$/.test(order) ? order + " =" : order;
    const number = /^[1-9]$/.exec(buttonId.replace(TOOLKIT.placeButton, ""))?.[0];
    if (!number || order.split(/[>=]/).some((word) => word.trim() === number)) return order;
    return !order ? number : order + (/[>=]$/.test(order) ? " " : " > ") + number;
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[id^='rank-']");
    if (!button || !orderField()) return;
    const before = orderField().value.trim();
    const after = orderAfter(before, button.id);
    if (after !== before) setOrder(after);
  });

  // ---- The board on Rank: answers are dragged to their places with mouse, pen or finger. A place
  // holds one answer, or several that tie. Between two places is a gap for one more.
  const answerText = (number) => find(`#${TOOLKIT.answer}${number} textarea`)?.value;
  const answerNumbers = () =>
    [1, 2, 3, 4, 5, 6, 7, 8, 9].filter((n) => visible(byId(TOOLKIT.placeButton + n)));
  const groups = (numbers) => {
    const left = new Set(numbers);
    const take = (word) => (left.delete(Number(word)) ? [Number(word)] : []);
    return orderField()
      .value.split(">")
      .map((tied) => tied.split("=").flatMap((word) => take(word.trim())))
      .filter((tied) => tied.length);
  };
  const moved = (order, number, target) => {
    const rest = order.map((tied) => tied.filter((n) => n !== number));
    if (target.dataset.place) rest[target.dataset.place].push(number);
    if (target.dataset.gap) rest.splice(target.dataset.gap, 0, [number]);
    return rest.filter((tied) => tied.length);
  };
  const append = (parent, kind, text) => {
    const element = parent.appendChild(document.createElement("div"));
    element.className = kind;
    element.textContent = text || "";
    return element;
  };
  const appendChip = (parent, number) => {
    const text = (answerText(number) || "").replace(/\s+/g, " ");
    const start = text.length > 60 ? text.slice(0, 59) + "…" : text;
    const chip = append(parent, "rank-chip", number + "  " + start);
    chip.dataset.number = number;
    chip.title = `Drag answer ${number} to its place. Dropped on another answer, it ties with it.`;
  };
  const drawBoard = (board, numbers) => {
    const order = groups(numbers);
    board.replaceChildren();
    const tray = append(board, "rank-tray");
    tray.dataset.tray = "1";
    const loose = numbers.filter((n) => !order.flat().includes(n));
    append(tray, "rank-name", loose.length ? "Drag from here" : "All are placed");
    loose.forEach((n) => appendChip(tray, n));
    order.forEach((tied, index) => {
      append(board, "rank-gap").dataset.gap = index;
      const place = append(board, "rank-place");
      place.dataset.place = index;
      append(place, "rank-name", index ? String(index + 1) : "1, the best");
      tied.forEach((n) => appendChip(place, n));
    });
    const last = append(board, "rank-gap", order.length ? "" : "Drop the best answer here");
    last.dataset.gap = order.length;
  };
  let drag = null;
  let drawn = "";
  const redraw = () => {
    const home = byId(TOOLKIT.board);
    if (drag || !visible(home) || !orderField()) return;
    const board = home.querySelector(".rank-places") || append(home, "rank-places");
    const numbers = answerNumbers();
    const state = JSON.stringify([orderField().value, numbers, numbers.map(answerText)]);
    if (state === drawn && board.childElementCount) return;
    drawn = state;
    if (numbers.length) drawBoard(board, numbers);
    else board.replaceChildren();
  };
  const targetOf = (event) => {
    const element = document.elementFromPoint(event.clientX, event.clientY);
    return element && element.closest("[data-place], [data-gap], [data-tray]");
  };
  const highlight = (target) => {
    document.querySelectorAll(".rank-aim").forEach((e) => e.classList.remove("rank-aim"));
    if (target) target.classList.add("rank-aim");
  };
  const drop = (target) => {
    const { number, element } = drag;
    drag = null;
    highlight(null);
    element.classList.remove("rank-held");
    element.style.transform = "";
    if (target) {
      const order = moved(groups(answerNumbers()), number, target);
      setOrder(order.map((tied) => tied.join(" = ")).join(" > "));
    }
    redraw();
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
    highlight(targetOf(event));
  });
  document.addEventListener("pointerup", (event) => {
    if (drag && event.pointerId === drag.pointer) drop(targetOf(event));
  });
  document.addEventListener("pointercancel", () => drag && drop(null));
  document.addEventListener("input", redraw);
  setInterval(redraw, 200); // Gradio sets a field without an event

  // ---- A message of the page itself, below a field. It stays until it is replaced by another or "".
  const showNote = (selector, text) => {
    const place = find(selector);
    const note = place?.querySelector(".page-note") || (place && append(place, "page-note note"));
    if (!note) return;
    note.setAttribute("role", "alert");
    if (note.textContent !== text) note.textContent = text;
  };

  // ---- The browser's storage holds the secret that opens earlier conversations again. Gradio reads
  // it and often shows no page if the browser denies that, so the page then gets an empty storage.
  for (const name of ["localStorage", "sessionStorage"]) {
    try {
      window[name].getItem("toolkit-test");
    } catch {
      const denied = () => { throw Error("This browser stores nothing."); };
      const value = { length: 0, key: () => null, getItem: () => null, setItem: denied, removeItem() {}, clear() {} };
      Object.defineProperty(window, name, { value, configurable: true });
    }
  }
  try {
    localStorage.setItem("toolkit-test", "");
    localStorage.removeItem("toolkit-test");
  } catch {
    const lost = "This browser stores nothing, so a conversation ends with this page.";
    setInterval(() => showNote("#compare-use", lost), 1000);
  }

  // ---- Batch: the browser reads a file into the box, so that nothing is uploaded.
  const fillFrom = async (file, box) => {
    if (!file.size) throw Error("the file is empty. Choose a text file with one prompt per line.");
    if (file.size > TOOLKIT.maxFile)
      throw Error(`the file has ${Math.ceil(file.size / 2 ** 20)} MiB. Choose one of at most ${TOOLKIT.maxFile / 2 ** 20} MiB.`);
    const bytes = new Uint8Array(await file.arrayBuffer());
    const mark = bytes[0] * 256 + bytes[1]; // a byte order mark of UTF-16
    const encoding = { 0xfffe: "utf-16le", 0xfeff: "utf-16be" }[mark] || "utf-8";
    let text = "\0";
    try {
      text = new TextDecoder(encoding, { fatal: true }).decode(bytes);
    } catch {
      // handled below, as a binary file is
    }
    if (text.includes("\0")) throw Error("the file is not a text in UTF-8. Save it as UTF-8 and open it again.");
    if (!text.trim()) throw Error("the file has only white space. Choose one with one prompt per line.");
    box.value = text;
    box.dispatchEvent(new Event("input", { bubbles: true }));
  };
  document.addEventListener("click", (event) => {
    const box = find(`#${TOOLKIT.batchPrompts} textarea`);
    if (!event.target.closest(`#${TOOLKIT.batchFile}`) || !box) return;
    const picker = document.createElement("input");
    picker.type = "file";
    picker.accept = ".txt,.jsonl,text/plain";
    picker.onchange = async () => {
      const file = picker.files[0];
      const note = await fillFrom(file, box).then(() => "", (e) => `${file.name}: ${e.message}`);
      showNote("#" + TOOLKIT.batchPrompts, note);
    };
    picker.click();
  });

  // ---- Tooltips on buttons and tabs, by their label without numbers, brackets and arrows
  const hintKey = (label) =>
    label.replace(/\([^)]*\)|[0-9]+|[▼▲◀]/g, "").replace(/\s+/g, " ").trim();
  const addHints = () => {
    for (const button of document.querySelectorAll("button:not([title])")) {
      const question = button.classList.contains(TOOLKIT.question);
      const hint = question ? TOOLKIT.questionHint : TOOLKIT.hints[hintKey(button.textContent)];
      if (hint) button.title = hint;
    }
  };
  // Gradio's own parts that a screen reader or a keyboard cannot use
  const addAccess = () => {
    for (const e of document.querySelectorAll("div[aria-label]:not([role])")) e.setAttribute("role", "group");
    for (const e of document.querySelectorAll(".toolkit-report table:not([tabindex])")) e.tabIndex = 0;
  };
  let scheduled = false;
  const schedule = () => {
    if (scheduled) return;
    scheduled = true;
    setTimeout(() => {
      scheduled = false;
      addHints();
      addAccess();
    }, 200);
  };
  new MutationObserver(schedule).observe(document, { childList: true, subtree: true });
})();
