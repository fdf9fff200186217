"""The tab Compare's part of the page's scripts: questions to try, and copying what a bubble says.

A question fills the prompt's box in the page itself, so that whoever asks right after has asked it. A
bubble's text is escaped, because the Chatbot takes it for HTML; its copy button would copy it so.
"""

PROMPT, QUESTION = "compare-prompt", "question"  # an elem_id, and a class of buttons

_SCRIPT = """
(() => {
  document.addEventListener("click", (event) => {
    const question = event.target.closest("button.%(question)s");
    const box = document.querySelector("#%(prompt)s textarea");
    if (!question || !box) return;
    box.value = question.textContent.trim();
    box.dispatchEvent(new Event("input", { bubbles: true }));
    box.focus();
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".answers button");
    // "Copy" alone is the button of a text field, such as the command's
    if (!button || !/copy message/i.test(button.getAttribute("aria-label") || "")) return;
    let around = button.parentElement;
    while (around && !around.querySelector(".message")) around = around.parentElement;
    if (!around || around.matches(".answers")) return;
    const bubbles = [...around.querySelectorAll(".message")];
    const before = (b) => b.compareDocumentPosition(button) & Node.DOCUMENT_POSITION_FOLLOWING;
    const bubble = bubbles.filter(before).pop();
    if (!bubble) return;
    event.stopPropagation();
    event.preventDefault();
    navigator.clipboard.writeText(bubble.innerText.trim());
  }, true);
})();
"""

BUBBLES_JS = _SCRIPT % {"prompt": PROMPT, "question": QUESTION}
