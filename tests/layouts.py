"The four downloads as Kaggle lays them out, made of phantom images; and what stands in for the call that fetches them."
import os, shutil
from pathlib import Path

def lay_out(name, dest, nih, indiana, note=True):
    "A phantom in the layout of a download; without its note it passes for real images"
    dest = Path(dest)
    if name == 'indiana': shutil.copytree(indiana, dest)
    elif name == 'release': shutil.copytree(nih, dest)
    else:
        dest.mkdir(parents=True)
        dict(zip(('224', 'sample'), (lay_out_224, lay_out_sample)))[name](dest, Path(nih))
        shutil.copy(Path(nih)/'phantom.json', dest)
    if not note: (dest/'phantom.json').unlink()
    return dest

def lay_out_224(dest, nih):
    "One folder within another of its name, lists under other names, no boxes"
    copy_images(nih, dest/'images-224'/'images-224')
    shutil.copy(nih/'Data_Entry_2017.csv', dest)
    for part in ('train_val', 'test'): shutil.copy(nih/f'{part}_list.txt', dest/f'{part}_list_NIH.txt')

def lay_out_sample(dest, nih):
    "Labels as in 2017, with ages such as 058Y; images in a folder, and a second time in a folder within it"
    for folder in ('sample/images', 'sample/sample/images'): copy_images(nih, dest/folder)
    head, *rows = (nih/'Data_Entry_2017.csv').read_text().splitlines()
    ages = [row.split(',') for row in rows]
    for row in ages: row[4] = f'{int(row[4]):03d}Y'
    text = '\n'.join([head, *map(','.join, ages)]) + '\n'
    for folder in ('.', 'sample', 'sample/sample'): (dest/folder/'sample_labels.csv').write_text(text)

def copy_images(nih, dest):
    dest.mkdir(parents=True)
    for file in nih.glob('images_*/images/*.png'): shutil.copy(file, dest)

class Hub:
    "What `kagglehub.dataset_download` does, without a network: a version, its mark, and how often it was asked"
    def __init__(self, nih, indiana, note=True):
        self.nih, self.indiana, self.note = nih, indiana, note
        self.asked = []

    def __call__(self, handle):
        from cxr_nb.data.downloads import DOWNLOADS
        self.asked.append(handle)
        name = next(k for k, o in DOWNLOADS.items() if o.handle == handle)
        home = Path(os.environ['KAGGLEHUB_CACHE'])/'datasets'/handle
        folder = home/'versions'/'3'
        if not folder.is_dir(): lay_out(name, folder, self.nih, self.indiana, self.note)
        (home/'3.complete').touch()
        return str(folder)
