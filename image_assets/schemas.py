"""The columns of every table, in the order of the path."""

from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    BooleanType,
    DataType,
    DateType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)

from resources.delta.table import FILL, Table


def _column(name: str, of: DataType, comment: str, **metadata: str) -> StructField:
    return StructField(name, of, nullable=True, metadata={"comment": comment, **metadata})


PATH = _column(
    "path", StringType(), "The file: `file:` and its absolute path; `%` and bytes that are no UTF-8 as `%XX`."
)
IMAGE_ID = _column("image_id", StringType(), "SHA-256 of the image's content, hexadecimal.")
MODIFICATION_TIME = _column("modification_time", TimestampType(), "When the file was last modified, UTC.")
LENGTH = _column("length", LongType(), "The file's size in bytes.")
CONTENT = _column("content", BinaryType(), "The image file's bytes; null above the content limit: path only.")
LABEL = _column(
    "label",
    StringType(),
    "The sub-folder of the landing folder, or what a label table or a person says; null where there is none.",
)
LABEL_INDEX = _column("label_index", IntegerType(), "The label's number; it stays as labels are added.")
# Tables that were created without this column hold rows of this model only.
MODEL_NAME = _column("model_name", StringType(), "The name of the registered model.", **{FILL: "image_classifier"})
MODEL_VERSION = _column("model_version", IntegerType(), "The version of the registered model.")
PERCEPTUAL_HASH = _column(
    "perceptual_hash", StringType(), "64-bit perceptual hash, hexadecimal; near duplicates differ little."
)
MIRRORED_HASH = _column(
    "mirrored_hash", StringType(), "The same of the image mirrored; null where it was taken in without."
)
FRAMEWORK = _column("framework", StringType(), "What the version was trained in: tensorflow or torch.")

IMAGE_FILES = Table(
    "image_files",
    keys=("path",),
    columns=StructType(
        [
            PATH,
            _column("state", StringType(), "current, pending, quarantined or missing."),
            _column("reason", StringType(), "Why it is quarantined or pending, in one word."),
            _column("message", StringType(), "Why, in a sentence."),
            IMAGE_ID,
            LENGTH,
            MODIFICATION_TIME,
            _column("attempts", IntegerType(), "How often the file was judged."),
            _column("first_seen", TimestampType(), "When a listing first found the file."),
            _column("last_seen", TimestampType(), "When a listing last found the file changed, or gone."),
        ]
    ),
)

REPLAYED_FILES = Table(
    "replayed_files",
    keys=("path", "replayed_at"),
    columns=StructType(
        [
            PATH,
            _column("reason_before", StringType(), "Why it was quarantined, in one word."),
            _column("message_before", StringType(), "Why, in a sentence."),
            _column("state", StringType(), "What it is now: current, or quarantined again."),
            _column("reason", StringType(), "Why it is quarantined now, in one word."),
            _column("message", StringType(), "Why, in a sentence."),
            _column("attempts", IntegerType(), "How often the file was judged, this time included."),
            _column("replayed_at", TimestampType(), "When, UTC."),
        ]
    ),
)

FETCHED_IMAGES = Table(
    "fetched_images",
    keys=("url",),
    columns=StructType(
        [
            _column("url", StringType(), "The address, without what it holds of passwords, keys and signatures."),
            _column("path", StringType(), "The file in the landing folder; null before it was fetched."),
            _column(
                "state",
                StringType(),
                "fetched; failed: the next run tries again; unnamed: it failed, and left the table.",
            ),
            _column("reason", StringType(), "Why it failed, in one word."),
            _column("message", StringType(), "Why, in a sentence."),
            IMAGE_ID,
            LENGTH,
            _column("stamp", StringType(), "What its server tells versions by; empty: it is fetched at every run."),
            _column("fetched_at", TimestampType(), "When the file was last fetched, UTC."),
        ]
    ),
)

RAW_IMAGES = Table(
    "raw_images",
    keys=("path", "image_id"),
    columns=StructType([PATH, MODIFICATION_TIME, LENGTH, IMAGE_ID, CONTENT]),
)

LABEL_CORRECTIONS = Table(
    "label_corrections",
    keys=("path", "image_id", "corrected_at"),
    columns=StructType(
        [
            PATH,
            IMAGE_ID,
            _column("corrected_at", TimestampType(), "When, UTC; of an image's rows the newest one counts."),
            _column("label", StringType(), "The label from then on; null: none, it is never trained on."),
            _column("former_label", StringType(), "The label before."),
            _column("withdrawn", BooleanType(), "Whether it takes corrections back: the label is the folder's again."),
            _column("corrected_by", StringType(), "Who, as they said."),
            _column("comment", StringType(), "Why, as they said; null where nobody said it."),
        ]
    ),
)

GIVEN_LABELS = Table(
    "given_labels",
    keys=("path",),
    columns=StructType(
        [
            PATH,
            _column("label", StringType(), "The label in place of the folder's; null: none, it is never trained on."),
            _column(
                "state", StringType(), "given, empty, contradictory, unusable, unnamed; folder: no table any more."
            ),
            _column("message", StringType(), "Why there is no label, in a sentence; null where there is one."),
        ]
    ),
)

IMAGE_SAMPLES = Table(
    "image_samples",
    keys=("path",),
    columns=StructType(
        [
            PATH,
            IMAGE_ID,
            LABEL,
            _column("height", IntegerType(), "Pixels from top to bottom, as Spark's image source decodes them."),
            _column("width", IntegerType(), "Pixels from left to right."),
            _column("channels", IntegerType(), "Values for each pixel."),
            _column("mode", IntegerType(), "OpenCV's number for the pixels' type."),
            _column("data", BinaryType(), "Pixels row by row, blue, green, red; null where Spark cannot decode."),
            _column("thumbnail", BinaryType(), "A small JPEG to look at."),
        ]
    ),
)

FEATURED_IMAGES = Table(
    "featured_images",
    keys=("path", "image_id"),
    made_from=(RAW_IMAGES,),
    columns=StructType(
        [
            PATH,
            IMAGE_ID,
            LABEL,
            LABEL_INDEX,
            _column("width", IntegerType(), "Pixels from left to right, as stored."),
            _column("height", IntegerType(), "Pixels from top to bottom, as stored."),
            _column("mode", StringType(), "Pillow's name for the pixels' kind, such as RGB."),
            _column("format", StringType(), "The file format, such as JPEG."),
            _column("orientation", IntegerType(), "EXIF orientation, 1 to 8; 1 is upright."),
            PERCEPTUAL_HASH,
            MIRRORED_HASH,
            _column("decode_warning", StringType(), "What the strict decoder objected to, where another one read it."),
            LENGTH,
            MODIFICATION_TIME,
            CONTENT,
        ]
    ),
)

GRAYSCALE_IMAGES = Table(
    "grayscale_images",
    keys=("path", "image_id"),
    made_from=(FEATURED_IMAGES,),
    columns=StructType(
        [
            PATH,
            IMAGE_ID,
            LABEL,
            LABEL_INDEX,
            _column(
                "content",
                BinaryType(),
                "The gray pixels as a lossless PNG; of an image without content in featured_images scaled down to "
                "fit in 2048 x 2048, or null where its file is gone.",
            ),
        ]
    ),
)

IMAGE_SPLITS = Table(
    "image_splits",
    keys=("path", "image_id"),
    made_from=(FEATURED_IMAGES,),
    columns=StructType(
        [
            PATH,
            IMAGE_ID,
            LABEL,
            LABEL_INDEX,
            PERCEPTUAL_HASH,
            MIRRORED_HASH,
            _column("duplicate_group", StringType(), "The same for near duplicates: the first member's image_id."),
            _column("split", StringType(), "training, validation or test; null when set aside."),
            _column("reason", StringType(), "Why an image is set aside."),
        ]
    ),
)

_SLICE = StructType(
    [
        _column("by", StringType(), "The trait: width, height, format or folder."),
        _column("value", StringType(), "What the images share."),
        _column("images", LongType(), "How many they are."),
        _column("accuracy", DoubleType(), "Share of right answers."),
        _column("low", DoubleType(), "The lower end of its 95 % interval."),
        _column("high", DoubleType(), "Its upper end."),
    ]
)

MODEL_EVALUATIONS = Table(
    "model_evaluations",
    keys=("model_name", "model_version", "split"),
    columns=StructType(
        [
            MODEL_NAME,
            MODEL_VERSION,
            _column("split", StringType(), "The split that was asked about: test."),
            FRAMEWORK,
            _column("images", LongType(), "How many images were asked about."),
            _column("accuracy", DoubleType(), "Share of right answers."),
            _column("labels", ArrayType(StringType()), "The labels, in the order of the figures."),
            _column("precision", ArrayType(DoubleType()), "For each label: right among those so predicted."),
            _column("recall", ArrayType(DoubleType()), "For each label: right among those so labelled."),
            _column(
                "confusion_matrix", ArrayType(ArrayType(LongType())), "Images by true label (rows) and prediction."
            ),
            _column("rows_digest", StringType(), "Digest of the images asked about; the same images, the same digest."),
            _column("evaluated_at", TimestampType(), "When, UTC."),
            _column("accuracy_low", DoubleType(), "The lower end of the accuracy's 95 % interval (Wilson)."),
            _column("accuracy_high", DoubleType(), "Its upper end."),
            _column("balanced_accuracy", DoubleType(), "The mean recall of the labels that have images."),
            _column("calibration_error", DoubleType(), "How far probabilities are from the share that is right."),
            _column("support", ArrayType(LongType()), "For each label: how many images have it."),
            _column(
                "precision_low", ArrayType(DoubleType()), "The lower ends of the intervals; null if never predicted."
            ),
            _column("precision_high", ArrayType(DoubleType()), "Their upper ends."),
            _column("recall_low", ArrayType(DoubleType()), "The lower ends of the intervals; null without images."),
            _column("recall_high", ArrayType(DoubleType()), "Their upper ends."),
            _column("slices", ArrayType(_SLICE), "The slices on which the version is worst, the worst first."),
            _column("compared_with", IntegerType(), "The serving version, or the best before while none served."),
            _column("only_this_right", LongType(), "Images on which this version is right and that one is not."),
            _column("only_other_right", LongType(), "Images on which that version is right and this one is not."),
            _column("p_value", DoubleType(), "How likely equally good versions differ as much (McNemar, exact)."),
        ]
    ),
)

_FINDING = StructType(
    [
        _column("check", StringType(), "What was looked at."),
        _column("passed", BooleanType(), "Whether it was as it has to be."),
        _column("said", StringType(), "What was found."),
    ]
)

STAGE_HISTORY = Table(
    "stage_history",
    keys=("model_name", "model_version", "change"),
    columns=StructType(
        [
            MODEL_NAME,
            MODEL_VERSION,
            _column("change", IntegerType(), "The number of this change among the version's own, from 1."),
            _column("changed_at", TimestampType(), "When, UTC; of a change made in MLflow, when it was noticed."),
            _column("from_stage", StringType(), "The stage before."),
            _column("to_stage", StringType(), "The stage after; deleted where the version is gone."),
            _column("aliases", ArrayType(StringType()), "The version's aliases after."),
            _column("source", StringType(), "promote_model, model_evaluations, or mlflow: made there by somebody."),
            _column("person", StringType(), "Who, as they said; null where nobody said it."),
            _column("reason", StringType(), "Why, as they said; of an archived version, which one took its place."),
            _column("forced", BooleanType(), "Whether it was moved against what the checks found."),
            _column("findings", ArrayType(_FINDING), "What the checks found; null where none were asked."),
            _column("promotion_id", StringType(), "The same for all that one promotion moved; null for other changes."),
        ]
    ),
)

PREDICTED_LABEL = _column("label", StringType(), "The predicted label; null where there is none, see fault.")
PROBABILITY = _column("probability", FloatType(), "How sure the model is, 0 to 1.")
PREDICTED_AT = _column("predicted_at", TimestampType(), "When, UTC.")

_ANSWER = [
    PREDICTED_LABEL,
    PROBABILITY,
    _column("probabilities", ArrayType(FloatType()), "The same for every label, in the order of the model's labels."),
    _column("fault", StringType(), "Why there is no answer: in one word, and in a sentence; null where there is one."),
    MODEL_NAME,
    MODEL_VERSION,
    FRAMEWORK,
    _column("device", StringType(), "Where it was computed: cpu or cuda."),
    PREDICTED_AT,
]

IMAGE_PREDICTIONS = Table(
    "image_predictions",
    keys=("path", "image_id", "model_name", "model_version"),
    made_from=(FEATURED_IMAGES,),
    columns=StructType([PATH, IMAGE_ID, *_ANSWER]),
)

CURRENT_PREDICTIONS = Table(
    "current_predictions",
    keys=("path",),
    made_from=(IMAGE_PREDICTIONS,),
    columns=StructType([PATH, IMAGE_ID, *_ANSWER]),
)

VERSION_AGREEMENTS = Table(
    "version_agreements",
    keys=("model_name", "model_version", "compared_with"),
    columns=StructType(
        [
            MODEL_NAME,
            MODEL_VERSION,
            _column("compared_with", IntegerType(), "The production version of the same model."),
            _column("images", LongType(), "The current images that both were asked about."),
            _column("agreeing", LongType(), "Those under the same label."),
            _column("agreement", DoubleType(), "The share of them."),
            _column("only_this_answered", LongType(), "Those to which the serving version has no answer."),
            _column("only_other_answered", LongType(), "Those to which this version has no answer."),
            _column("mean_probability", DoubleType(), "Of this version's answers."),
            _column("other_mean_probability", DoubleType(), "Of the serving version's answers."),
            _column("compared_at", TimestampType(), "When, UTC."),
        ]
    ),
)

PREDICTION_DRIFT = Table(
    "prediction_drift",
    keys=("model_name", "model_version", "day"),
    columns=StructType(
        [
            MODEL_NAME,
            MODEL_VERSION,
            _column("day", DateType(), "When the images arrived, UTC."),
            _column("images", LongType(), "How many images they are."),
            _column("answered", LongType(), "How many of them the version has an answer to."),
            _column("labels", ArrayType(StringType()), "The version's labels, in the order of the shares."),
            _column("label_shares", ArrayType(DoubleType()), "For each label: the share of answers that name it."),
            _column("mean_probability", DoubleType(), "How sure the version is of its answers, on average."),
            _column("threshold", DoubleType(), "The probability below which an answer is unsure."),
            _column("unsure_share", DoubleType(), "The share of answers below the threshold."),
            _column(
                "answer_distance",
                DoubleType(),
                "How far the answers are from those to the test split, 0 to 1 (Jensen-Shannon); null without such.",
            ),
            _column(
                "embedding_distance",
                DoubleType(),
                "How far images are from those trained on (maximum mean discrepancy); null until the day is over.",
            ),
            _column("measured_at", TimestampType(), "When, UTC."),
        ]
    ),
)

PREDICTION_ALERTS = Table(
    "prediction_alerts",
    keys=("path", "image_id", "model_name", "model_version", "rule", "receiver"),
    made_from=(CURRENT_PREDICTIONS,),
    columns=StructType(
        [
            PATH,
            IMAGE_ID,
            MODEL_NAME,
            MODEL_VERSION,
            _column("rule", StringType(), "The name of the alert rule that the prediction met."),
            _column("receiver", StringType(), "Whom it is told."),
            PREDICTED_LABEL,
            PROBABILITY,
            PREDICTED_AT,
            _column("matched_at", TimestampType(), "When a run found that the prediction met the rule, UTC."),
            _column("state", StringType(), "waiting, sending, sent or unclear."),
            _column("message_id", StringType(), "The message that it is told in; null before the first attempt."),
            _column("attempts", IntegerType(), "How often that message was sent."),
            _column("note", StringType(), "Why it is not sent yet, or unclear, in a sentence."),
            _column("next_attempt_at", TimestampType(), "Before, the receiver is left alone after a failure, UTC."),
            _column("sent_at", TimestampType(), "When the receiver accepted it, UTC."),
        ]
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
    IMAGE_SPLITS,
    MODEL_EVALUATIONS,
    STAGE_HISTORY,
    IMAGE_PREDICTIONS,
    CURRENT_PREDICTIONS,
    VERSION_AGREEMENTS,
    PREDICTION_DRIFT,
    PREDICTION_ALERTS,
)
