import json
import sys

import numpy
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("image_classifier.onnx")
metadata = session.get_modelmeta().custom_metadata_map
side = int(metadata["side_pixels"])
labels, thresholds = json.loads(metadata["labels"]), json.loads(metadata["thresholds"])
mode, least_size = {"rgb": ("RGB", (2 * side, 2 * side)), "gray": ("L", None)}[metadata["color"]]
for image in map(Image.open, sys.argv[1:]):
    image.draft(mode, least_size)  # a large JPEG is decoded at a fraction of its size
    opaque = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert(mode)
    opaque.info = image.info  # with its orientation
    upright = ImageOps.exif_transpose(opaque.resize((side, side), Image.Resampling.BILINEAR)).convert("RGB")
    probabilities = session.run(None, {"image": numpy.asarray(upright)})[0][0]
    best = probabilities.argmax()
    answers = thresholds[best] is not None and probabilities[best] >= numpy.float32(thresholds[best])
    print(image.filename, labels[best] if answers else f"abstains, perhaps {labels[best]}", probabilities[best])
