"""How the page looks: gradio's plain theme with the system's fonts, in light and dark."""

from __future__ import annotations

import gradio as gr


def theme() -> gr.themes.Base:
    return gr.themes.Default(
        primary_hue="indigo",
        secondary_hue="indigo",
        neutral_hue="slate",
        radius_size="lg",
        font=("system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    ).set(body_background_fill="*neutral_50", body_background_fill_dark="*neutral_950")


_ICON = (
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgBAMAAACBVGfHAAAAMFBMVEUAAABjZvL1nwtjY/f4ogQAAP///wBhZfD1nwr2nwpmZ+yHc7fQkET/AA"
    "D/fwA/P79q5dGtAAAAEHRSTlMA/P0KCgEBcJZkjf//AQMEzr2HrgAAAR1JREFUeNpdkL1KxEAUhb+ZZBNNoTs2iojIPkFQS4v0Iixsr6m0EwsL"
    "H0AUwULsBIsV7GyCFlpY+ALCwsIu+ANiYyOylUV00CI3u0lOc4dv7tx75kBFCmpNAH4SQbVQDll1Wb1ZAsB2pWHywhhjjJndCQFU66MvT7xPC+"
    "jXrXx+utgElDMx3Ljx0AFdsBBCGfSqIO1VwHK6BjhGdN9o7BOPtlxtAusHqaN9AIJbgP7jVw7O7wCs7bgysJ6Vy0RmBL5cvOthTpmOBXznYKAr"
    "kdZ1WAYDbRfKHQo/AP6mBMwrQj/CCfckxheFYwFOTwDQ1wpab2BnngDYTsSRN7bbBvznX/GRxocxeNMro33x+NlR5BUMeIAbF36FGzHXhn9sOj"
    "vVZtjagQAAAABJRU5ErkJggg=="
)
HEAD = f'<link rel="icon" href="data:image/png;base64,{_ICON}">'
"""The page's icon, a square and a circle, 32 x 32."""
CSS = """
.gradio-container { max-width: 1180px !important; width: 100%; margin: 0 auto !important; }
.gradio-container .html-container, .gradio-container .html-container.padding { padding: 0; }
.fj-title { font-size: 1.5rem; font-weight: 650; margin: .25rem 0 0; letter-spacing: -.01em; }
.fj-footer { color: var(--body-text-color-subdued); font-size: .85rem; text-align: center; padding: .5rem 0 1rem; }
.fj-empty { display: grid; place-content: center; min-height: 22rem; padding: 1rem; text-align: center;
  color: var(--body-text-color-subdued); border: 1px dashed var(--border-color-primary);
  border-radius: var(--block-radius); }
.fj-note, .fj-error { padding: .6rem .9rem; border-radius: var(--block-radius); overflow-wrap: anywhere; }
.fj-note { color: var(--body-text-color-subdued); background: var(--background-fill-secondary); }
.fj-error { color: var(--error-text-color); background: var(--error-background-fill);
  border: 1px solid var(--error-border-color); }
.fj-line { display: flex; justify-content: space-between; gap: 1rem; font-variant-numeric: tabular-nums; }
.fj-progress progress { width: 100%; height: .5rem; margin: .4rem 0 .8rem; border: 0; border-radius: 99px;
  overflow: hidden; appearance: none; background: var(--border-color-primary); accent-color: var(--primary-500); }
.fj-progress progress::-webkit-progress-bar { background: var(--border-color-primary); }
.fj-progress progress::-webkit-progress-value { background: var(--primary-500); transition: width .15s; }
.fj-progress progress::-moz-progress-bar { background: var(--primary-500); }
.fj-previews { display: grid; grid-template-columns: repeat(var(--columns), 1fr); gap: .6rem; }
.fj-previews img { width: 100%; border-radius: var(--block-radius); display: block; }
#fj-chat button[title="Share"], #fj-chat button[aria-label="Share"] { display: none; }
#fj-chat .message img { width: 14rem; max-width: 100%; height: auto; object-fit: contain;
  border-radius: var(--radius-md); }
#fj-gallery .grid-wrap { max-height: none; }
#fj-gallery .preview { background: var(--block-background-fill); backdrop-filter: none; }
#fj-draw, #fj-cancel { font-size: 1rem; }
@media (max-width: 700px) {
  .fj-columns .fj-stage { order: -1; }
  .fj-empty { min-height: 8rem; }
}
"""
