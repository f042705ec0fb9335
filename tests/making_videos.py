import cv2


def write_video(path, images, rate=5):
    """Write image files of 192x192 pixels as the frames of a video."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), rate, (192, 192))
    for image in images:
        writer.write(cv2.imread(str(image)))
    writer.release()
    return path
