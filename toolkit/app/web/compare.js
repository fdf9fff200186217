
// Compare and the tabs' addresses. Everything else of Compare is Gradio's own.
(() => {
  const find = (selector) => document.querySelector(selector);

  // ---- A tab has an address such as #arena, so that reload, Back and links lead to it.
  const slug = (tab) => tab.textContent.trim().toLowerCase().replace(/\s+/g, "-");
  // On a narrow page some tabs are in the menu "More tabs".
  const TAB = "button[role=tab], .overflow-dropdown button";
  const tabs = () => [...document.querySelectorAll(TAB)];
  const wanted = () => {
    try {
      return decodeURIComponent(location.hash.slice(1));
    } catch {
      return ""; // such as #100%
    }
  };
  const openWanted = () => {
    const all = tabs();
    const name = wanted() || (all[0] && slug(all[0]));
    const tab = all.find((one) => slug(one) === name);
    if (tab && tab.getAttribute("aria-selected") !== "true") tab.click();
    return Boolean(tab);
  };
  addEventListener("hashchange", openWanted);
  document.addEventListener("click", (event) => {
    const tab = event.target.closest(TAB);
    if (!tab || !event.isTrusted || slug(tab) === wanted()) return;
    history.pushState(null, "", "#" + encodeURIComponent(slug(tab)));
  });
  const whenBuilt = setInterval(() => openWanted() && clearInterval(whenBuilt), 50);
  setTimeout(() => clearInterval(whenBuilt), 20000);

  // ---- The address names the open conversation, so that a reload leads to it.
  let restored = false; // the server has shown a conversation
  setInterval(() => {
    const open = find(".conversations input:checked")?.value;
    restored ||= Boolean(open);
    const [address, name] = [new URL(location.href), open || TOOLKIT.newChat];
    if (!restored || address.searchParams.get(TOOLKIT.conversation) === name) return;
    address.searchParams.set(TOOLKIT.conversation, name);
    history.replaceState(null, "", address);
  }, 200);

  // ---- The side panel: open on a wide page, closed on a narrow one, until the button changes it.
  // On a narrow page it covers the chat, so a new or chosen conversation closes it.
  document.addEventListener("click", (event) => {
    const panel = find("#" + TOOLKIT.panel);
    if (event.target.closest("#" + TOOLKIT.panelButton)) panel.classList.toggle("toggled");
    else if (innerWidth <= 700 && event.target.closest("#compare-new, .conversations label"))
      panel.classList.remove("toggled");
  });

  // ---- The prompt is cleared when it is sent, so that the next one can be typed at once. While
  // answers stream, it cannot be sent. After an error it comes back; the server may be gone by then.
  const PROMPT = "#" + TOOLKIT.prompt;
  const fillPrompt = (text) => {
    const box = find(PROMPT + " textarea");
    box.value = text;
    box.dispatchEvent(new Event("input", { bubbles: true }));
    return box;
  };
  let sending = 0; // a timer: Gradio reads the prompt after the event
  let unsent = ""; // until its answers stream
  let errors = 0; // the length of Gradio's error messages, which share a box
  const shownErrors = () => find(".toast-body.error")?.textContent || "";
  const isLost = () => shownErrors().includes("Connection to the server was lost");
  const clear = () => {
    clearTimeout(sending);
    sending = 0;
    unsent = find(PROMPT + " textarea").value;
    errors = shownErrors().length;
    fillPrompt("");
  };
  const restoreUnsent = () => {
    if (!unsent) return;
    const failed = isLost() || shownErrors().length > errors;
    errors = Math.min(errors, shownErrors().length);
    if (failed && !find(PROMPT + " textarea")?.value) fillPrompt(unsent);
    if (failed || find(PROMPT + " .stop-button")) unsent = "";
  };
  new MutationObserver(restoreUnsent).observe(document, { childList: true, subtree: true });
  const clearSent = () => {
    if (!find(PROMPT + " .stop-button") && !isLost()) sending = setTimeout(clear);
  };
  document.addEventListener("keydown", () => sending && clear(), true); // a key before the timer
  document.addEventListener("keypress", (event) => {
    const field = event.target.closest(PROMPT);
    if (field && event.key === "Enter" && !event.shiftKey) clearSent();
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest(PROMPT + " .submit-button")) clearSent();
  });

  // ---- The typed prompt survives a reload. Gradio reloads the page when a lost server is back.
  const storeTyped = () => {
    try {
      sessionStorage.setItem("toolkit-prompt", find(PROMPT + " textarea").value);
    } catch {
      // no storage, or it is full
    }
  };
  const restoreTyped = setInterval(() => {
    const box = find(PROMPT + " textarea");
    if (!box) return;
    clearInterval(restoreTyped);
    const typed = sessionStorage.getItem("toolkit-prompt");
    if (typed && !box.value) fillPrompt(typed);
    addEventListener("pagehide", storeTyped);
  }, 50);

  // ---- Enter that ends the input of a Chinese, Japanese or Korean word does not send the prompt.
  document.addEventListener("keydown", (event) => {
    if (event.isComposing && event.target.closest(PROMPT)) event.stopPropagation();
  }, true);

  // ---- Gradio gives the prompt's buttons no name, and the prompt no tooltip.
  const NAMES = {
    ".submit-button": "Send",
    ".stop-button": "Stop all answers",
    "textarea": "The prompt. Enter sends it, Shift+Enter breaks the line.",
  };
  const addNames = () => {
    for (const [selector, name] of Object.entries(NAMES)) {
      const element = find(`${PROMPT} ${selector}`);
      if (!element || element.title) continue;
      element.title = name;
      if (element.tagName === "BUTTON") element.ariaLabel = name;
    }
  };
  new MutationObserver(addNames).observe(document, { childList: true, subtree: true });

  // ---- A question to try fills the prompt without the server, so that Enter can follow at once.
  document.addEventListener("click", (event) => {
    const question = event.target.closest(`button.${TOOLKIT.question}`);
    if (question) fillPrompt(question.textContent.trim()).focus();
  });

  const copy = (text) => {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    // a page of plain http that is not on this machine has no clipboard
    const box = document.body.appendChild(document.createElement("textarea"));
    box.value = text;
    box.select();
    document.execCommand("copy");
    box.remove();
  };

  // ---- The copy button of a message. Gradio's own would copy the escaped text.
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".answers button");
    // a button labelled "Copy" alone belongs to a text field, such as the command's
    if (!button || !/copy message/i.test(button.getAttribute("aria-label") || "")) return;
    let around = button.parentElement;
    while (around && !around.querySelector(".message")) around = around.parentElement;
    if (!around || around.matches(".answers")) return;
    const before = (m) => m.compareDocumentPosition(button) & Node.DOCUMENT_POSITION_FOLLOWING;
    const message = [...around.querySelectorAll(".message")].filter(before).pop();
    if (!message) return;
    event.stopPropagation();
    event.preventDefault();
    copy(message.innerText.trim());
  }, true);
})();
