"""Every table: its columns, their meaning, and the keys."""

from pyspark.sql import types as T

from resources.delta.table import FILL, Table

# Tags of the steps that lead from a file to its prediction: Dagster runs them before checks and summaries.
PREDICTED_FIRST = {"dagster/priority": "1"}


def _column(name: str, of: T.DataType, comment: str, **metadata: str) -> T.StructField:
    return T.StructField(name, of, nullable=True, metadata={"comment": comment, **metadata})


def _text(name: str, comment: str, **metadata: str) -> T.StructField:
    return _column(name, T.StringType(), comment, **metadata)


def _integer(name: str, comment: str) -> T.StructField:
    return _column(name, T.IntegerType(), comment)


def _long(name: str, comment: str) -> T.StructField:
    return _column(name, T.LongType(), comment)


def _double(name: str, comment: str) -> T.StructField:
    return _column(name, T.DoubleType(), comment)


def _doubles(name: str, comment: str) -> T.StructField:
    return _column(name, T.ArrayType(T.DoubleType()), comment)


def _time(name: str, comment: str) -> T.StructField:
    return _column(name, T.TimestampType(), comment)


def _columns(*fields: T.StructField) -> T.StructType:
    return T.StructType([*fields])


PATH = _text("path", "The file: `file:` and its absolute path, with `%` and bytes that are not UTF-8 as `%XX`.")
IMAGE_ID = _text("image_id", "SHA-256 of the image's content, hexadecimal.")
MODIFICATION_TIME = _time("modification_time", "When the file was last modified, UTC.")
LENGTH = _long("length", "The file size in bytes.")
CONTENT = _column("content", T.BinaryType(), "The bytes of the image file; null above the content limit.")
LABEL = _text("label", "From a correction, the label table, or the subfolder of the landing folder; null if none.")
LABEL_INDEX = _integer("label_index", "The number of the label; it does not change when labels are added.")
# Tables that were created without this column hold rows of this model only.
MODEL_NAME = _text("model_name", "The name of the registered model.", **{FILL: "image_classifier"})
MODEL_VERSION = _integer("model_version", "The version of the registered model.")
VERSION_ID = _text(
    "version_id",
    "What the version is, whatever its number in another registry: SHA-256 of its files, or else its MLflow run; empty "
    "in rows of earlier releases whose version is no longer known.",
    **{FILL: ""},
)
PERCEPTUAL_HASH = _text("perceptual_hash", "64-bit perceptual hash, hexadecimal; similar images differ in few bits.")
MIRRORED_HASH = _text("mirrored_hash", "The perceptual hash of the mirrored image; null in old rows.")
FRAMEWORK = _text("framework", "The framework the version was trained with: tensorflow or torch.")

IMAGE_FILES = Table(
    "image_files",
    keys=("path",),
    columns=_columns(
        PATH,
        _text("state", "current, pending, quarantined or missing."),
        _text("reason", "Why the file is quarantined or pending, as one word."),
        _text("message", "The reason as a sentence."),
        IMAGE_ID,
        LENGTH,
        MODIFICATION_TIME,
        _integer("attempts", "How many times the file was inspected."),
        _time("first_seen", "When a run first found the file."),
        _time("last_seen", "When a run last found that the file had changed or disappeared."),
    ),
)

REPLAYED_FILES = Table(
    "replayed_files",
    keys=("path", "replayed_at"),
    columns=_columns(
        PATH,
        _text("reason_before", "Why the file was quarantined before, as one word."),
        _text("message_before", "The reason as a sentence."),
        _text("state", "The new state: current, or quarantined again."),
        _text("reason", "Why the file is quarantined again, as one word."),
        _text("message", "The reason as a sentence."),
        _integer("attempts", "How many times the file was inspected, including this time."),
        _time("replayed_at", "When the file was inspected again, UTC."),
    ),
)

FETCHED_IMAGES = Table(
    "fetched_images",
    keys=("url",),
    columns=_columns(
        _text("url", "The URL, without passwords, keys and signatures."),
        _text("path", "The file in the landing folder; null until it is downloaded."),
        _text(
            "state", "fetched, failed (the next run retries it), or unnamed (no longer listed, and failed or replaced)."
        ),
        _text("reason", "Why the download failed, as one word."),
        _text("message", "The reason as a sentence."),
        IMAGE_ID,
        LENGTH,
        _text("stamp", "The version reported by the server, such as an ETag; if empty, every run downloads."),
        _time("fetched_at", "When the file was last downloaded, UTC."),
    ),
)

RAW_IMAGES = Table(
    "raw_images", keys=("path", "image_id"), columns=T.StructType([PATH, MODIFICATION_TIME, LENGTH, IMAGE_ID, CONTENT])
)

LABEL_CORRECTIONS = Table(
    "label_corrections",
    keys=("path", "image_id", "corrected_at"),
    columns=_columns(
        PATH,
        IMAGE_ID,
        _time("corrected_at", "When the label was corrected, UTC; the newest row of an image counts."),
        _text("label", "The new label; null if the image has none and must not be trained on."),
        _text("former_label", "The previous label."),
        _column(
            "withdrawn",
            T.BooleanType(),
            "Whether this row withdraws earlier corrections, so that the label is that of the folder again.",
        ),
        _text("corrected_by", "Who corrected the label, as they entered it."),
        _text("comment", "The reason they gave; null if none."),
    ),
)

GIVEN_LABELS = Table(
    "given_labels",
    keys=("path",),
    columns=_columns(
        PATH,
        _text(
            "label",
            "The label that replaces that of the folder; null if the image has none and must not be trained on.",
        ),
        _text(
            "state",
            "given, empty, contradictory, unusable, ambiguous, unnamed, or folder (the label is that of the folder).",
        ),
        _text("message", "Why there is no label, as a sentence; null if there is one."),
        _text("matched_by", "How the label table writes the path differently, as words; null if it is exact."),
        _column(
            "attributes",
            T.MapType(T.StringType(), T.StringType()),
            "The other columns of the label table: names and values; null if there are none.",
        ),
    ),
)

IMAGE_SAMPLES = Table(
    "image_samples",
    keys=("path",),
    columns=_columns(
        PATH,
        IMAGE_ID,
        LABEL,
        _integer("height", "Height of the stored pixels."),
        _integer("width", "Width of the stored pixels; that of the file is in featured_images."),
        _integer("channels", "Number of values per pixel."),
        _integer("mode", "OpenCV's number for the pixel type."),
        _column(
            "data",
            T.BinaryType(),
            "Pixels by row, as blue, green, red, as Spark's image source reads them; of an image with more than a "
            "million pixels, those of an upright copy that fits in 1,024 x 1,024; null if Spark cannot read it.",
        ),
        _column("thumbnail", T.BinaryType(), "A small JPEG preview."),
    ),
)

FEATURED_IMAGES = Table(
    "featured_images",
    keys=("path", "image_id"),
    made_from=(RAW_IMAGES,),
    columns=_columns(
        PATH,
        IMAGE_ID,
        LABEL,
        LABEL_INDEX,
        _integer("width", "Width in pixels, as stored."),
        _integer("height", "Height in pixels, as stored."),
        _text("mode", "Pillow's name for the pixel format, such as RGB."),
        _text("format", "The file format, such as JPEG."),
        _integer("orientation", "EXIF orientation, 1 to 8, where 1 is upright."),
        PERCEPTUAL_HASH,
        MIRRORED_HASH,
        _column(
            "hashes",
            T.BinaryType(),
            "The perceptual hashes of the image, of its crops and rotations, and of the mirrored image, 8 bytes each.",
        ),
        _column("thumbnail", T.BinaryType(), "A JPEG of 64 x 64 pixels, which near duplicates are compared by."),
        _text("decode_warning", "The error of the strict decoder, if a lenient one could read the image."),
        _integer("pages", "Number of pages or frames in the file; 0 if an old row's file is gone."),
        _double("black_value", "The pixel value that is shown as black: 0 for 8 bits, except where 0 means white."),
        _double("white_value", "The pixel value that is shown as white: 255 for 8 bits."),
        _time("captured_at", "When the image was taken: UTC if capture_zone is known, else the camera's clock."),
        _text("capture_zone", "The time zone of the camera, such as +02:00."),
        _text("camera", "Make and model of the camera."),
        _text("lens", "The lens."),
        _double("latitude", "Where the image was taken, in degrees, negative in the south."),
        _double("longitude", "Where the image was taken, in degrees, negative in the west."),
        LENGTH,
        MODIFICATION_TIME,
        CONTENT,
    ),
)

GRAYSCALE_IMAGES = Table(
    "grayscale_images",
    keys=("path", "image_id"),
    made_from=(FEATURED_IMAGES,),
    columns=_columns(
        PATH,
        IMAGE_ID,
        LABEL,
        LABEL_INDEX,
        _column(
            "content",
            T.BinaryType(),
            "The grayscale image as a lossless PNG. Images without content in featured_images are scaled down to "
            "fit in 2048 x 2048; null if their file is gone.",
        ),
    ),
)

IMAGE_EMBEDDINGS = Table(
    "image_embeddings",
    keys=("path", "image_id", "backbone"),
    made_from=(FEATURED_IMAGES,),
    columns=_columns(
        PATH,
        IMAGE_ID,
        _text(
            "backbone",
            "What computed the embedding: the network, its framework, and a hash of its weights and of how images are "
            "read.",
        ),
        _column(
            "embedding",
            T.BinaryType(),
            "The output of the frozen backbone as little-endian float16 values (`numpy.frombuffer(embedding, '<f2')`), "
            "because Delta has no such type; null if the image cannot be read.",
        ),
    ),
)

IMAGE_SPLITS = Table(
    "image_splits",
    keys=("path", "image_id"),
    made_from=(FEATURED_IMAGES,),
    columns=_columns(
        PATH,
        IMAGE_ID,
        LABEL,
        LABEL_INDEX,
        PERCEPTUAL_HASH,
        MIRRORED_HASH,
        _text(
            "duplicate_group",
            "The image_id of the group's first image, or its path if duplicates are not grouped; near duplicates share "
            "one group.",
        ),
        _text("split", "training, validation or test; null if the image is left out."),
        _text("reason", "Why the image is left out of all splits."),
        _text("given_split", "The split that the first-level folder is named after; null if it is not named so."),
        _text(
            "duplicates",
            "What was grouped when the image was assigned: near, exact or off; null in old rows, for near.",
        ),
    ),
)

_SLICE = _columns(
    _text("by", "The property that defines the slice: width, height, format or folder."),
    _text("value", "The value that the images share."),
    _long("images", "Number of images in the slice."),
    _double("accuracy", "Share of correct predictions."),
    _double("low", "Lower bound of the 95 % interval of the accuracy."),
    _double("high", "Upper bound of the 95 % interval of the accuracy."),
)

MODEL_EVALUATIONS = Table(
    "model_evaluations",
    keys=("model_name", "model_version", "version_id", "split", "dataset", "corruption"),
    columns=_columns(
        MODEL_NAME,
        MODEL_VERSION,
        VERSION_ID,
        _text("split", "The split that the version was evaluated on: test; empty for another dataset."),
        FRAMEWORK,
        _long("images", "Number of images in the split."),
        _double("accuracy", "Share of correct predictions; where the version abstained, of most probable labels."),
        _column("labels", T.ArrayType(T.StringType()), "The labels, in the order of the metrics per label."),
        _doubles("precision", "For each label, the share of its predictions that are correct."),
        _doubles("recall", "For each label, the share of its images that are predicted correctly."),
        _column(
            "confusion_matrix",
            T.ArrayType(T.ArrayType(T.LongType())),
            "Image counts by true label (rows) and predicted label (columns).",
        ),
        _text("rows_digest", "Digest of the evaluated images; it changes when the images of the split change."),
        _time("evaluated_at", "When the version was evaluated, UTC."),
        _double("accuracy_low", "Lower bound of the 95 % interval of the accuracy (Wilson)."),
        _double("accuracy_high", "Upper bound of the 95 % interval of the accuracy."),
        _double("balanced_accuracy", "Mean recall of the labels that have images."),
        _double(
            "calibration_error",
            "Expected calibration error: the mean distance between probability and accuracy, in 15 bins of equal "
            "width; in rows without a log loss, in bins of equal size.",
        ),
        _column("support", T.ArrayType(T.LongType()), "For each label, the number of images that have it."),
        _doubles("precision_low", "Lower bounds of the 95 % intervals; null for labels that are never predicted."),
        _doubles("precision_high", "Upper bounds of the 95 % intervals."),
        _doubles("recall_low", "Lower bounds of the 95 % intervals; null for labels without images."),
        _doubles("recall_high", "Upper bounds of the 95 % intervals."),
        _column("slices", T.ArrayType(_SLICE), "The slices with the lowest accuracy, the worst first."),
        _integer("compared_with", "The production version or, if there was none, the best version evaluated before."),
        _long("only_this_right", "Images that only this version predicts correctly."),
        _long("only_other_right", "Images that only the other version predicts correctly."),
        _double("p_value", "Probability of such a difference between equally good versions (exact McNemar test)."),
        _double("log_loss", "Mean negative logarithm of the true label's probability; null in old rows."),
        _double("coverage", "Share of the images for which the version did not abstain; null in old rows."),
        _double("answered_accuracy", "Share of correct predictions among those; null in old rows."),
        _double("unlike_share", "Share of the images that are unlike the training images; null for old versions."),
        _text("dataset", "The images of the job evaluate_version that the version was evaluated on.", **{FILL: ""}),
        _text("corruption", "How these were corrupted, such as blur 2; empty for as they are.", **{FILL: ""}),
        _long("unreadable", "Number of images of the dataset that could not be read; they are not evaluated."),
        _long("with_unknown_label", "Number of images whose label the version does not have; not evaluated either."),
        _doubles("thresholds", "For each label, the probability below which the version abstains; null if always."),
    ),
)

_FINDING = _columns(
    _text("check", "The name of the check."),
    _column("passed", T.BooleanType(), "Whether the check passed."),
    _text("said", "What the check found."),
)

STAGE_HISTORY = Table(
    "stage_history",
    keys=("model_name", "model_version", "version_id", "change"),
    columns=_columns(
        MODEL_NAME,
        MODEL_VERSION,
        VERSION_ID,
        _integer("change", "The number of the change, counted from 1 for each version."),
        _time("changed_at", "When the stage changed, UTC; for changes made in MLflow, when they were detected."),
        _text("from_stage", "The previous stage."),
        _text("to_stage", "The new stage; deleted if the version no longer exists."),
        _column("aliases", T.ArrayType(T.StringType()), "The aliases of the version after the change."),
        _text("source", "The job or asset, stage_changes (alias and stage in step), or mlflow (by hand there)."),
        _text("person", "Who decided, as they entered it; null if unknown."),
        _text("reason", "The reason given; for an archived version, which version replaced it."),
        _column("forced", T.BooleanType(), "Whether the version was moved although checks failed."),
        _column("findings", T.ArrayType(_FINDING), "The results of the checks; null if none were run."),
        _text("promotion_id", "Shared by a request and all changes of one promotion; null for other changes."),
        _text("account", "Who ran the job: the account on MLflow's server, else the operating system's."),
        _text("request", "requested, approved or rejected; null for changes of stages and aliases."),
        _text("requested_stage", "The stage that a request asks for; null for other rows."),
    ),
)

BACKBONE_COMPARISONS = Table(
    "backbone_comparisons",
    keys=("dagster_run_id", "backbone", "framework"),
    columns=_columns(
        _text("dagster_run_id", "The run that compared the backbones."),
        _text("backbone", "The name of the backbone."),
        FRAMEWORK,
        _text("weights", "Where its weights came from: folder, imagenet, package, file or untrained."),
        _integer("side_pixels", "Width and height of the images that it takes."),
        _integer("features", "Length of an embedding."),
        _long("training_images", "Number of images that the head was trained on."),
        _long("images", "Number of images of the test split, on which accuracy and calibration error were measured."),
        _double("accuracy", "Share of correct predictions on the test split."),
        _double("accuracy_low", "Lower bound of the 95 % interval of the accuracy (Wilson)."),
        _double("accuracy_high", "Upper bound of the 95 % interval of the accuracy."),
        _double("validation_accuracy", "Share of correct predictions on the validation split; ranks the backbones."),
        _double("calibration_error", "Expected calibration error on the test split, in 15 bins of equal width."),
        _double("training_seconds", "Seconds for embedding the images and training the head."),
        _double("images_per_second", "Images that all processes together decode and embed in a second."),
        _double("megabytes", "Size of the weights in memory, in millions of bytes."),
        _text("error", "Why there are no figures; null if there are."),
        _text("rows_digest", "Digest of the images of the test split; only rows with the same one are comparable."),
        _time("compared_at", "When the backbone was tried, UTC."),
    ),
)

PREDICTED_LABEL = _text("label", "The predicted label; null if there is none (see fault and abstained).")
PROBABILITY = _column("probability", T.FloatType(), "The probability of the predicted label, 0 to 1.")
PREDICTED_AT = _time("predicted_at", "When the prediction was made, UTC.")

_ANSWER = [
    PREDICTED_LABEL,
    PROBABILITY,
    _column("probabilities", T.ArrayType(T.FloatType()), "The probability of every label, in the model's order."),
    _text("fault", "Why there is no prediction: one word, a colon and a sentence; null if there is one."),
    MODEL_NAME,
    MODEL_VERSION,
    VERSION_ID,
    FRAMEWORK,
    _text("device", "The device that computed the prediction: cpu or cuda."),
    PREDICTED_AT,
    _column(
        "abstained",
        T.BooleanType(),
        "Whether label is null because its probability is below the version's threshold; null in old rows.",
    ),
    _text(
        "most_probable_label",
        "The label that probability belongs to, also if the version abstained; null if there is a fault, and in old "
        "rows, where it is the label.",
    ),
    _column(
        "distance_from_training",
        T.FloatType(),
        "Cosine distance of the image's embedding to its k-th nearest among training images, 0 to 2; null in old rows.",
    ),
    _column(
        "unlike_training",
        T.BooleanType(),
        "Whether that distance is greater than for 95 % of the validation images; null in old rows.",
    ),
]

IMAGE_PREDICTIONS = Table(
    "image_predictions",
    keys=("path", "image_id", "model_name", "model_version", "version_id"),
    made_from=(FEATURED_IMAGES,),
    columns=T.StructType([PATH, IMAGE_ID, *_ANSWER]),
)

CURRENT_PREDICTIONS = Table(
    "current_predictions",
    keys=("path",),
    made_from=(IMAGE_PREDICTIONS,),
    columns=T.StructType([PATH, IMAGE_ID, *_ANSWER]),
)

VERSION_AGREEMENTS = Table(
    "version_agreements",
    keys=("model_name", "model_version", "version_id", "compared_with", "compared_with_id"),
    columns=_columns(
        MODEL_NAME,
        MODEL_VERSION,
        VERSION_ID,
        _integer("compared_with", "The production version of the same model."),
        _text("compared_with_id", "What that version is, like version_id.", **{FILL: ""}),
        _long("images", "Number of current images that both versions predicted."),
        _long("agreeing", "Number of images with the same predicted label."),
        _double("agreement", "Share of images with the same predicted label."),
        _long("only_this_answered", "Number of images for which only the production version has no label."),
        _long("only_other_answered", "Number of images for which only this version has no label."),
        _double("mean_probability", "Mean probability of this version's predictions."),
        _double("other_mean_probability", "Mean probability of the production version's predictions."),
        _time("compared_at", "When the versions were compared, UTC."),
    ),
)

PREDICTION_DRIFT = Table(
    "prediction_drift",
    keys=("model_name", "model_version", "version_id", "day"),
    columns=_columns(
        MODEL_NAME,
        MODEL_VERSION,
        VERSION_ID,
        _column("day", T.DateType(), "The day the images arrived, UTC."),
        _long("images", "Number of images that arrived on that day."),
        _long("answered", "Number of those images that have a prediction."),
        _column("labels", T.ArrayType(T.StringType()), "The labels of the version, in the order of label_shares."),
        _doubles("label_shares", "For each label, its share of the predictions."),
        _double("mean_probability", "Mean probability of the predictions."),
        _double("threshold", "The probability below which a prediction has low confidence."),
        _double("unsure_share", "Share of predictions below the threshold."),
        _double(
            "answer_distance",
            "Jensen-Shannon distance from the predictions on the test split, 0 to 1; null if there are none.",
        ),
        _double("embedding_distance", "Maximum mean discrepancy from the training images; null until the day is over."),
        _time("measured_at", "When the day was measured, UTC."),
    ),
)

PREDICTION_ALERTS = Table(
    "prediction_alerts",
    keys=("path", "image_id", "model_name", "model_version", "version_id", "rule", "receiver"),
    made_from=(CURRENT_PREDICTIONS,),
    columns=_columns(
        PATH,
        IMAGE_ID,
        MODEL_NAME,
        MODEL_VERSION,
        VERSION_ID,
        _text("rule", "The name of the alert rule that the prediction matches."),
        _text("receiver", "The receiver of the alert."),
        PREDICTED_LABEL,
        PROBABILITY,
        PREDICTED_AT,
        _time("matched_at", "When a run found that the prediction matches the rule, UTC."),
        _text("state", "waiting, sending, sent, unclear or dropped."),
        _text("message_id", "The message that contains the alert; null before the first attempt."),
        _integer("attempts", "How many times that message was sent."),
        _text("note", "Why the alert is waiting or unclear, as a sentence."),
        _time("next_attempt_at", "When the receiver is tried again after a failure, UTC."),
        _time("sent_at", "When the receiver accepted the message, UTC."),
    ),
)

TABLES = (
    IMAGE_FILES,
    REPLAYED_FILES,
    FETCHED_IMAGES,
    RAW_IMAGES,
    GIVEN_LABELS,
    LABEL_CORRECTIONS,
    IMAGE_SAMPLES,
    FEATURED_IMAGES,
    GRAYSCALE_IMAGES,
    IMAGE_EMBEDDINGS,
    IMAGE_SPLITS,
    MODEL_EVALUATIONS,
    BACKBONE_COMPARISONS,
    STAGE_HISTORY,
    IMAGE_PREDICTIONS,
    CURRENT_PREDICTIONS,
    VERSION_AGREEMENTS,
    PREDICTION_DRIFT,
    PREDICTION_ALERTS,
)

# The keys of the first table are among those of the second.
UPSTREAM = (
    (FEATURED_IMAGES, RAW_IMAGES),
    (GRAYSCALE_IMAGES, FEATURED_IMAGES),
    (IMAGE_EMBEDDINGS, FEATURED_IMAGES),
    (IMAGE_SPLITS, FEATURED_IMAGES),
    (IMAGE_PREDICTIONS, FEATURED_IMAGES),
    (PREDICTION_ALERTS, IMAGE_PREDICTIONS),
)
