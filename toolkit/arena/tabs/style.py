"""How the page looks."""

import gradio as gr

CSS = """
.answers { display: grid !important; gap: 12px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 280px), 1fr)); }
.answers > * { min-width: 0 !important; }
.answers .message { overflow-wrap: anywhere; }
.answers button[aria-label="Clear"] { display: none; }
.note, .note p { color: var(--block-info-text-color); font-size: var(--text-sm); }
.dark .toolkit-curve img { filter: invert(0.9) hue-rotate(180deg); }
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
