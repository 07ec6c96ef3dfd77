"""From readings to loggers: TensorBoard gets pictures, and everything as compact tensors; other loggers get numbers.

    tag                      a reading, a stage and a prefix -> its name
    LoggedStep               the readings of one step, by detector (DetectorReadings)
    shown                    ... -> those that become scalars: all, a summary over the layers, or none
    compact                  ... -> one tensor per statistic, one per histogram
    write                    ... -> every logger of the run
    write_event              ... -> one TensorBoard event
    write_scalars            ... -> one ``log_metrics`` call
    write_text_table         texts -> the loggers that take text
    write_layout             one TensorBoard chart per statistic, one line per layer
    summary_writer           a logger -> its ``SummaryWriter``, if it has one
    read_compact             event files -> the numbers (HistoryRow, all in a HistoryTable)
    read_compact_histograms  event files -> the histograms (HistogramRow, all in a HistogramTable)
    read_texts               event files -> the texts of predict runs (TextRow)
    read_events              event files -> what happened in the run (EventRow)

Loggers are passed in as objects; nothing here imports Lightning.
"""

from mi_crow_lightning._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
