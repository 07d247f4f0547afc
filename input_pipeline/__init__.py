"""Comic pages with annotations become questions with an answer and the regions that matter. Knows comics, knows no model.

    schema         Page, Panel, Character, Balloon, Region, Question
    sources/       ai4va: AI4VA's COCO files with their sidecar; manga109: its XML; reading: what readers share (losses, numbers, boxes, images)
    pictures       image files as people see them, and files that are none
    reading_order  panels and balloons in the order in which they are read  scene      a page with its things sorted into its panels
    tasks/         the seven tasks: Page -> Questions                       balance    takes away questions that a habit would answer
    baselines      how far one gets without looking                         report, report_page  what a build made, as JSON and as a page
    dataset        ArrayRecord on disk                                      loader     batches from it
    build          all of it in one go                                      exports/      other projects' formats
    synthetic/     pages drawn in AI4VA's format                      traces     supervised conversations from questions

How to add a source, in one file. Write a module with

    @dataclass(frozen=True)
    class ReadSettings: ...                       what can be set, with defaults
    def read(folder, settings, progress=None):    -> (list[Page], ReadReport)

`read` fills in `Page` with what the source knows and leaves the rest None: each task takes the pages that have what it needs and reports the
others. Panels without `order` are ordered by their boxes (`right_to_left` and `double` matter then). Count losses in a `sources.reading.Tally`, bring
boxes onto the page with `reading.fit_box`, look for images with `reading.find_image`, end with `reading.keep_readable`; ids and sizes that others wrote
are read by `reading.as_key` and `reading.whole`, JSON by `reading.read_json`. Page ids become file names, so no two pages may share one. Then build with
--config=configs/build_ai4va_fg.py:your.module; manga109.py is an example of about 300 lines.
"""
