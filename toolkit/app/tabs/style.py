"""How the page looks."""

import gradio as gr

CSS = """
.answers { display: grid !important; gap: 12px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 280px), 1fr)); }
.answers > * { min-width: 0 !important; }
.answers .message { overflow-wrap: anywhere; }
.answers button[aria-label="Clear"] { display: none; }
.quiet [data-testid="status-tracker"]:has(> .error) { display: none; } /* a toast has said it */
.note, .note p { color: var(--block-info-text-color); font-size: var(--text-sm); }
.dark .toolkit-curve img { filter: invert(0.9) hue-rotate(180deg); }
.difference .text.text { word-break: normal; overflow-wrap: anywhere; }
.tokens th, .tokens th *, .ratings th, .ratings th * { white-space: nowrap !important; }
.questions { flex-wrap: wrap; gap: 6px; }
.questions button { flex: 0 1 auto !important; width: auto !important; max-width: 100%;
  white-space: normal; text-align: left; font-weight: normal; }
.rank-places { display: flex; flex-direction: column; gap: 2px; }
.rank-tray, .rank-place { display: flex; flex-wrap: wrap; align-items: center; gap: 6px;
  padding: 6px 8px; min-height: 44px; border: 1px solid var(--border-color-primary);
  border-radius: var(--radius-md); background: var(--block-background-fill); }
.rank-name { min-width: 90px; color: var(--block-info-text-color); font-size: var(--text-sm); }
.rank-gap { min-height: 18px; border-radius: var(--radius-md); text-align: center;
  color: var(--block-info-text-color); font-size: var(--text-sm); }
.rank-gap:not(:empty) { padding: 10px; margin-top: 6px;
  border: 1px dashed var(--border-color-primary); }
.rank-aim { background: var(--color-accent-soft); outline: 2px dashed var(--color-accent); }
.rank-chip { max-width: 100%; padding: 4px 10px; overflow: hidden; white-space: nowrap;
  text-overflow: ellipsis; border-radius: var(--radius-md); cursor: grab; touch-action: none;
  user-select: none; background: var(--button-secondary-background-fill);
  color: var(--body-text-color); border: 1px solid var(--border-color-primary); }
.rank-held { position: relative; z-index: 5; opacity: 0.85; cursor: grabbing;
  pointer-events: none; }
@media (max-width: 700px) { .answers { grid-template-columns: 1fr; } }
"""


def theme() -> gr.themes.Default:
    """Fonts of the visitor's own machine; explanations and the button's word easy to read."""
    font, mono = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
    return gr.themes.Default(font=font, font_mono=mono).set(
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
    )
