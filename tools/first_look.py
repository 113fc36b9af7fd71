"""The picture on the first page: a drawn radiograph, where a network saw a finding, and its probabilities.

`python tools/first_look.py RUN` takes a run on phantoms, such as that of `cxr-demo`, and writes
`nbs/images/first_look.jpg`. It shows the surest right call whose heatmap peaks in the box: a good case, as the page
says."""
from pathlib import Path

import pandas as pd
from fastcore.script import call_parse
from cxr_nb.deploy.picture import plot_prediction
from cxr_nb.deploy.predict import load_classifier
from cxr_nb.explain.boxes import box_peaks, pointing_game
from cxr_nb.training.run import open_run

OUT = Path(__file__).resolve().parent.parent/'nbs'/'images'/'first_look.jpg'

def good_cases(run, clf, preds, n=60):
    "Boxed test images that are called rightly and whose heatmap peaks in the box, surest first"
    boxes = run.data.boxes[run.data.boxes.image.isin(preds.index)]
    pairs = boxes[['image', 'finding']].drop_duplicates()
    prob = [preds.at[o.image, f'prob_{o.finding}'] for o in pairs.itertuples()]
    pairs = pairs.assign(prob=prob, limit=pairs.finding.map(clf.thresholds))
    surest = pairs[pairs.prob >= pairs.limit].nlargest(n, 'prob')
    boxes = boxes.merge(surest[['image', 'finding']])
    images = list(surest.image.unique())
    gray = run.cache.images[run.cache.rows(images)]
    hits = pointing_game(box_peaks(run.model, gray, images, boxes), boxes)
    return surest.merge(hits[hits.hit == 1][['image', 'finding']]).sort_values('prob', ascending=False), boxes

@call_parse
def main(
    run:str, # A run folder on phantoms
    finding:str='', # Which finding; any if not given
):
    "Write the picture"
    clf, opened = load_classifier(run), open_run(run)
    preds = pd.read_csv(Path(run)/'predictions_test.csv', index_col='image')
    cases, boxes = good_cases(opened, clf, preds)
    if finding: cases = cases[cases.finding == finding]
    case = cases.iloc[0]
    mine = boxes[(boxes.image == case.image) & (boxes.finding == case.finding)]
    figure = plot_prediction(clf, opened.data.files[case.image], case.finding, mine)
    figure.savefig(OUT, dpi=160, pil_kwargs=dict(quality=85))
    print(f'{OUT}: {case.image}, {case.finding}, {case.prob:.2f}; {len(cases)} such cases')
